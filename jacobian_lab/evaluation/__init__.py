"""Evaluation: the questions that an edited model is asked, and the paper's metrics of its answers.

This package judges a model by its predictions alone, and does not know how it was edited.
"""
