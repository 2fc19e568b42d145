"""The frontier: what is generalised against what is disturbed along λ, a curve a scheme."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("frontier")
