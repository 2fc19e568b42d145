"""The residual that is left against the number of decisive layers."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("layer_count")
