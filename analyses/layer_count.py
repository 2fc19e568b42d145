"""The residual that is left against the number of decisive layers."""

from jacobian_lab.cli import SCRIPTS

if __name__ == "__main__":
    SCRIPTS["layer_count"]()
