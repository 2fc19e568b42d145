"""A run, or two side by side, as one self-contained page.

`building` makes a dictionary of a run, `writing` a page of that. Facts are data in the page, which a script without
dependencies shows; nothing of it is fetched from anywhere.
"""
