"""Shares of effort, price, and change at the last layer, layer by layer and scheme by scheme."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("effort")
