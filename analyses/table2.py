"""Table 2: the residual that backward spreading leaves at the last layer."""

from jacobian_lab.cli import paper_table

if __name__ == "__main__":
    paper_table("table2")
