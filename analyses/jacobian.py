"""J of every fact and layer: spectra, and the verdict of theorem 2."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("jacobian")
