"""Table 1: the cosine of an edit's shift and the passive shift it makes at the last layer."""

from jacobian_lab.cli import SCRIPTS

if __name__ == "__main__":
    SCRIPTS["table1"]()
