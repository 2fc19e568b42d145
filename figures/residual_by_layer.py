"""Tables 2 and 5 as a figure: the residual that each scheme leaves after each layer's edit."""

from pathlib import Path

import matplotlib.pyplot as plt
import xarray as xr

from jacobian_lab.drawing import residual_by_layer, save, script, style


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
        residual_by_layer(ax, dataset)
        return save(figure, folder, "residual_by_layer")


if __name__ == "__main__":
    script("residual_by_layer", make, __doc__)
