"""The residual that is left against the number of decisive layers."""

from jacobian_lab.charts import layer_count
from jacobian_lab.drawing import script

if __name__ == "__main__":
    script(layer_count, __doc__, kind="layer-count", needs=("final_ratio",), made_by="layer-count")
