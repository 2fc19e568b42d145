"""Editing: anchors, target schemes, second moments, update rules, and the one loop over layers.

Here lives what changes weights and what is measured while they change. Nothing here knows of runs or the command line.
"""
