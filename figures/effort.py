"""Who carries what: effort, price, and part of the change at the last layer, scheme by scheme."""

from jacobian_lab.report.results import figure_script

if __name__ == "__main__":
    figure_script("effort")
