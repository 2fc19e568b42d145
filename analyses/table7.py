"""Table 7: the methods on GPT-J-6B's protocol."""

from jacobian_lab.cli import SCRIPTS

if __name__ == "__main__":
    SCRIPTS["table7"]()
