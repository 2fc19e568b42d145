"""Table 7: the methods on GPT-J-6B's protocol."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("table7")
