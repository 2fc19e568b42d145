"""A search over layers, λ, learning rate and passes: frontiers of the finalists, and every window's score."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("tune")
