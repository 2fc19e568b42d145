"""F_{l→L} and its derivative J_{l→L}: hooks, replay of the decisive token, Jacobians, and the theorems' conditions.

Here lives what can be asked of a model without changing it. Nothing here knows targets, edits or runs.
"""
