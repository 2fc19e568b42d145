"""Figures from stored arrays: each draws an open run on an empty figure.

Here lives what is drawn; how figures look and where they go is `jacobian_lab.report.figures.style`'s.
"""
