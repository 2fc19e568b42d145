"""Table 3: methods with and without forward replay on Llama-3-8B-Instruct's protocol."""

from jacobian_lab.cli import comparison_table

if __name__ == "__main__":
    comparison_table("table3")
