"""Figure 3, measured: the residual after other steps along the edits' shifts, layer by layer."""

from jacobian_lab.report.figures import step_size
from jacobian_lab.report.style import script

if __name__ == "__main__":
    script(
        step_size,
        __doc__,
        below=True,
        needs=("step_replayed",),
        made_by="step-size",
        panels=lambda run: run.sizes["layer"],
        height=1.0,
    )
