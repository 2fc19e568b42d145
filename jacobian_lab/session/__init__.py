"""The engine: a model, facts, and all that edits of them are made with, each made once when it is first needed.

It knows neither stores nor plans. An `Editor` holds a session in memory; a job records one's anchors in a run.
"""
