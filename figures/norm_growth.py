"""Growth of norms along a sequence of edits: of the changes, and of states by block."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("norm_growth")
