"""Theorem 2: the strict condition on S, and the milder one along the edits' own directions."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("theorem2")
