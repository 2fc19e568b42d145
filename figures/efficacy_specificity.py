"""Every method by what it edits and what it leaves alone: without replay, with forward and with coordinated replay."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("efficacy_specificity")
