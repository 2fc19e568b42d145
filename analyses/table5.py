"""Table 5: the residual that forward replay leaves at the last layer."""

from jacobian_lab.cli import SCRIPTS

if __name__ == "__main__":
    SCRIPTS["table5"]()
