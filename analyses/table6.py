"""Table 6: the methods on GPT2-XL's protocol."""

from jacobian_lab.cli import comparison_table

if __name__ == "__main__":
    comparison_table("table6")
