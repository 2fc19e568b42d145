"""The residual that is left against the number of decisive layers."""

from jacobian_lab.report.figures import layer_count
from jacobian_lab.report.style import script

if __name__ == "__main__":
    script(layer_count, __doc__, kind="layer_count", needs=("final_ratio",), made_by="layer-count")
