"""Table 5: the residual that forward replay leaves at the last layer."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("table5")
