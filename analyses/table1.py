"""Table 1: the cosine of an edit's shift and the passive shift it makes at the last layer."""

from jacobian_lab.cli import script

if __name__ == "__main__":
    script("table1")
