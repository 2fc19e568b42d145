"""Every method in the plane of what it edits and what it leaves alone, with and without forward replay."""

from jacobian_lab.report.results import figure_script

if __name__ == "__main__":
    figure_script("efficacy_specificity")
