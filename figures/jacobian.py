"""Spectra of the Jacobians, and how far they are from normal against the distance."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("jacobian")
