"""The store: a run's folder, its arrays with their meaning and units, its digests.

Here lives what can be left and resumed. Nothing here knows torch, or what the numbers are of.
"""
