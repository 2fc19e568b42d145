"""Gain of coordinated replay over forward replay, rule by rule, paired over facts."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("cr_gain")
