"""The residual that is left against the number of decisive layers."""

from jacobian_lab.cli import analysis

if __name__ == "__main__":
    analysis("layer_count")
