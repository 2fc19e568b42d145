"""Figure 3, measured: the residual after other steps along the edits' shifts, layer by layer."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("step_size")
