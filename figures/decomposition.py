"""What an edit does at the last layer: J·δ, curvature and leakage, scheme by scheme."""

from jacobian_lab.report.results import figure_script

if __name__ == "__main__":
    figure_script("decomposition")
