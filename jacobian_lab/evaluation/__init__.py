"""Evaluation: what an edited model is asked, and the paper's metrics of what it answers.

Here lives what looks at a model from outside, by its predictions alone. Nothing here knows how it was edited.
"""
