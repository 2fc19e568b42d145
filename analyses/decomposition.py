"""What an edit does at the last layer, split into J·δ, curvature and leakage."""

from jacobian_lab.cli import analysis

if __name__ == "__main__":
    analysis("decomposition")
