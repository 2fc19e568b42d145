"""Table 2: the residual that backward spreading leaves at the last layer."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("table2")
