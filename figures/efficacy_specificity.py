"""Every method in the plane of what it edits and what it leaves alone, with and without forward replay."""

from jacobian_lab.report.figures import efficacy_specificity
from jacobian_lab.report.style import script

if __name__ == "__main__":
    script(
        efficacy_specificity,
        __doc__,
        kind="edit_table",
        needs=("efficacy_success",),
        made_by="edit-table",
        panels=lambda _run: 2,
        height=0.75,
    )
