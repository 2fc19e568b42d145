"""Table 6: the methods on GPT2-XL's protocol."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("table6")
