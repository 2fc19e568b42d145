"""Transfer: the share of a layer's shift that reaches other contexts, and answers where shares are imposed."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("transfer")
