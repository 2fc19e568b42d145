"""Distances of edited, paraphrased and neighbourhood prompts from a side memory, and the threshold."""

from jacobian_lab.report.showing import figure_script

if __name__ == "__main__":
    figure_script("routing")
