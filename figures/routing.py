"""Which prompts a side memory serves: distances of edited, paraphrased and neighbourhood prompts, and the threshold."""

from jacobian_lab.report.results import figure_script

if __name__ == "__main__":
    figure_script("routing")
