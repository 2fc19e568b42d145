"""Theorem 2: whether S is positive definite, and the milder condition along the edits' directions."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("theorem2")
