"""Table 4: forward replay with the rules PRUNE, RECT and AlphaEdit on Llama-3-8B-Instruct's protocol."""

from jacobian_lab.cli import SCRIPTS

if __name__ == "__main__":
    SCRIPTS["table4"]()
