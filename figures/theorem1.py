"""Theorem 1: how far the edits' shifts are from eigenvectors of J, against random directions."""

from jacobian_lab.report.figures import theorem1
from jacobian_lab.report.style import script

if __name__ == "__main__":
    script(
        theorem1,
        __doc__,
        below=True,
        needs=("eigenvector_angle",),
        made_by="theorem1",
        panels=lambda _run: 2,
        height=0.6,
    )
