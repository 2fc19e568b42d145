"""Table 1 as a figure: how well an edit's shift keeps its direction on the way to the last layer."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("cosine_by_layer")
