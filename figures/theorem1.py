"""Theorem 1: how far the edits' shifts are from eigenvectors of J, against random directions."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("theorem1")
