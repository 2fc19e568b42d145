"""Methods that train: WISE's side memory, and RLEdit's hypernetwork.

The package holds their settings, losses and loops, and the router of a side memory. It writes no runs, and does not
know the closed-form rules.
"""
