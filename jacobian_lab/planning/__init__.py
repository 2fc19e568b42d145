"""Estimates: counts of the pieces of work times their rates on a machine; does it fit, and how long does it take.

Here live the shape of a model without its weights, the counts, the rates, and the plan. What counts is elsewhere, and
nothing here computes a number of a run.
"""
