"""Table 3: methods with and without forward replay on Llama-3-8B-Instruct's protocol."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("table3")
