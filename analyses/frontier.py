"""One update rule under several target schemes along λ: what is gained against what is disturbed."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("frontier")
