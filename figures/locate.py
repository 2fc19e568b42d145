"""Heat maps of causal traces, by role of the token and layer."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("locate")
