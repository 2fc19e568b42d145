"""At which μ does jacobian-pullback help? One edit for each μ, beside backward spreading."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("damping")
