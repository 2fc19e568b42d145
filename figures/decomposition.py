"""What an edit does at the last layer: J·δ, curvature and leakage, scheme by scheme."""

from jacobian_lab.report.figures import decomposition, schemes_with
from jacobian_lab.report.style import script

if __name__ == "__main__":
    script(
        decomposition,
        __doc__,
        below=True,
        needs=("linear_norm",),
        panels=lambda run: len(schemes_with(run, "linear_norm")),
        height=1.2,
    )
