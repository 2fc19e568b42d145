"""Share of a layer's shift that reaches other contexts, and answers imposed against edited."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("transfer")
