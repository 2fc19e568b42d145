"""Batches of a sequence held against the first: what each edit leaves and leaks, and J just before it."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("breakdown")
