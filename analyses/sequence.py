"""Edits one after another: what is forgotten, and what breaks."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("sequence")
