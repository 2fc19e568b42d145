"""Decomposition of an edit's shift at the last layer into J·δ, curvature and leakage, scheme by scheme."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("decomposition")
