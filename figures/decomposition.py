"""What an edit does at the last layer: J·δ, curvature and leakage, scheme by scheme."""

from jacobian_lab.charts import decomposition
from jacobian_lab.drawing import script

if __name__ == "__main__":
    script(decomposition, __doc__, needs=("linear_norm",), panels=lambda run: run.sizes["scheme"], height=1.2)
