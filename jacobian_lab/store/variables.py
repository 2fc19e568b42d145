"""Declaration of a stored array."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """Declaration of a stored array.

    Attributes:
        dims: Its dimensions.
        long_name: Its meaning, in words.
        units: Its units; "1" for ratios.
        dtype: Its NumPy dtype. Floats begin as NaN, integers as 0.
        study: The study that it comes from; values of an interrupted study are not shown.
        mark: The part of a run that it belongs to, named by the array that is set when the part is finished.
    """

    dims: tuple[str, ...]
    long_name: str
    units: str = "1"
    dtype: str = "f8"
    study: str = ""
    mark: str = ""
