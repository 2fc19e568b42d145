"""Methods that train: WISE's side memory, and RLEdit's hypernetwork.

Here live what is trained, its losses and loops, and the router by which a side memory serves rows. Nothing here reads
configurations, writes runs, or knows the closed-form rules.
"""
