"""Jobs: each computes what a run lacks, and stores it.

Here live configurations, what they name loaded and checked, and the work itself. Nothing here makes a table
or a figure.
"""
