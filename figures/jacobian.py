"""Spectra of the Jacobians, and how far they are from normal against the distance."""

from jacobian_lab.report.figures import jacobian
from jacobian_lab.report.style import script

if __name__ == "__main__":
    script(
        jacobian,
        __doc__,
        kind="jacobian",
        needs=("singular_value",),
        made_by="jacobian --method dense",
        panels=lambda _run: 4,
        height=1.0,
    )
