"""Edits one after another: what is still answered, and the damage, a curve a method."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("sequence")
