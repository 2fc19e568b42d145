"""Table 1 as a figure: how well an edit's shift keeps its direction on the way to the last layer."""

from pathlib import Path

import matplotlib.pyplot as plt
import xarray as xr

from jacobian_lab.drawing import cosine_by_layer, save, script, style


def make(dataset: xr.Dataset, folder: Path) -> list[Path]:
    """Draw one column.

    Args:
        dataset: An open run.
        folder: Where to save.

    Returns:
        The files.
    """
    with style():
        figure, ax = plt.subplots()
        cosine_by_layer(ax, dataset)
        return save(figure, folder, "cosine_by_layer")


if __name__ == "__main__":
    script("cosine_by_layer", make, __doc__)
