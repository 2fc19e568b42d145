"""Table 5: the residual that forward replay leaves at the last layer."""

from jacobian_lab.cli import analysis

if __name__ == "__main__":
    analysis("table5")
