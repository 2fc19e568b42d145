"""What forward replay adds to each rule, paired over facts."""

from jacobian_lab.report.results import figure_script

if __name__ == "__main__":
    figure_script("fe_gain")
