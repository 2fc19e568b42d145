"""Gain of forward replay over each rule alone, paired over facts."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("fe_gain")
