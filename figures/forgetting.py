"""Forgetting: what each batch still gives as others follow, a heat map a method."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("forgetting")
