"""The remaining residual of every single fact under each scheme, and the median."""

from pathlib import Path

import matplotlib.pyplot as plt
import xarray as xr

from jacobian_lab.drawing import save, script, spread_by_fact, style


def make(dataset: xr.Dataset, folder: Path) -> list[Path]:
    """Draw all schemes across the page.

    Args:
        dataset: An open run.
        folder: Where to save.

    Returns:
        The files.
    """
    with style("full", columns=dataset.sizes["scheme"], height=1.2):
        figure = plt.figure()
        spread_by_fact(figure, dataset)
        return save(figure, folder, "spread_by_fact")


if __name__ == "__main__":
    script("spread_by_fact", make, __doc__)
