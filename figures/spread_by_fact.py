"""The remaining residual of every single fact under each scheme, and the median."""

from jacobian_lab.drawing import script, spread_by_fact

if __name__ == "__main__":
    script(spread_by_fact, __doc__, wide=True)
