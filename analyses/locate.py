"""Causal traces: layers and tokens that bring an answer back."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("locate")
