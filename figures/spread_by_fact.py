"""The remaining residual of every single fact under each scheme, and the median."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("spread_by_fact")
