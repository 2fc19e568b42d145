"""Table 7: the methods on GPT-J-6B's protocol."""

from jacobian_lab.cli import comparison_table

if __name__ == "__main__":
    comparison_table("table7")
