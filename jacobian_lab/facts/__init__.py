"""Facts: what is to be edited, from the built-in set or from a file in any published layout.

Here lives all that reads, checks and describes records. Nothing here knows a tokenizer or a model.
"""
