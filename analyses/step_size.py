"""Figure 3, measured: what other step sizes would leave, and how far J can be trusted."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("step_size")
