"""What coordinated replay adds to forward replay, rule by rule, paired over facts."""

from jacobian_lab.report.results import figure_script

if __name__ == "__main__":
    figure_script("cr_gain")
