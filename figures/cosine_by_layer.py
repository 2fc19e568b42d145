"""Table 1 as a figure: how well an edit's shift keeps its direction on the way to the last layer."""

from jacobian_lab.report.figures import cosine_by_layer
from jacobian_lab.report.style import script

if __name__ == "__main__":
    script(cosine_by_layer, __doc__, needs=("cosine",))
