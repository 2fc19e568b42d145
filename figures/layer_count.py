"""The residual that is left against the number of decisive layers."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("layer_count")
