"""What an edit does at the last layer: J·δ, curvature and leakage, scheme by scheme."""

from jacobian_lab.charts import decomposition, shifted_schemes
from jacobian_lab.drawing import script

if __name__ == "__main__":
    script(
        decomposition,
        __doc__,
        below=True,
        needs=("linear_norm",),
        panels=lambda run: len(shifted_schemes(run)),
        height=1.2,
    )
