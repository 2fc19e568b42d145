"""Tables 2 and 5 as a figure: the residual that each scheme leaves after each layer's edit."""

from jacobian_lab.report.figures import residual_by_layer
from jacobian_lab.report.style import script

if __name__ == "__main__":
    script(residual_by_layer, __doc__, needs=("residual_ratio",))
