"""Table 4: forward replay with the rules PRUNE, RECT and AlphaEdit on Llama-3-8B-Instruct's protocol."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("table4")
