"""Executors of work that is divided by facts: this process, or workers that hold the model too, by Ray.

Here live how many share the work, what whoever works has to be able to do, this process and Ray's actors that do it.
What is done with a piece of the facts is a function of the package that needs it done; only `workers` knows Ray.
"""
