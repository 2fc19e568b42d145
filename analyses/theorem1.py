"""Theorem 1: how near the edits' shifts are to eigenvectors of J, against random directions."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("theorem1")
