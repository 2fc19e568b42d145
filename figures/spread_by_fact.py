"""The remaining residual of every single fact under each scheme, and the median."""

from jacobian_lab.report.figures import spread_by_fact
from jacobian_lab.report.style import script

if __name__ == "__main__":
    script(spread_by_fact, __doc__, needs=("residual_ratio",), panels=lambda run: run.sizes["scheme"], height=1.2)
