"""Reports: tables and figures of what runs hold.

Here lives what reads a run and shows it. Nothing here knows torch or a model; a report can be made anywhere.
"""
