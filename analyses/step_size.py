"""Figure 3, measured: what other step sizes would leave, and how far J can be trusted."""

from jacobian_lab.cli import SCRIPTS

if __name__ == "__main__":
    SCRIPTS["step_size"]()
