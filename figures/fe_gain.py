"""What forward replay adds to each rule, paired over facts."""

from jacobian_lab.report.figures import fe_gain
from jacobian_lab.report.style import script

if __name__ == "__main__":
    script(
        fe_gain,
        __doc__,
        kind="edit_table",
        needs=("efficacy_success",),
        made_by="edit-table",
        panels=lambda _run: 2,
        height=0.75,
    )
