"""The effect of an edit at the last layer, split into J·δ, curvature and leakage."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("decomposition")
