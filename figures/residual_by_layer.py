"""Tables 2 and 5 as a figure: the residual that each scheme leaves after each layer's edit."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("residual_by_layer")
