"""Where jobs find what does their long work, so that a test can watch or forbid it."""

import pytest

from jacobian_lab.jobs import comparison, experiment, measuring, sweeps
from jacobian_lab.session import descents, session

HOMES = {
    "optimize_anchors": descents,
    "best_anchors": descents,
    "coordinate_shifts": descents,
    "observed_edits": measuring,
    "second_moments": experiment,
    "edit_with": session,
    "perplexity": comparison,
    "measured_edit": sweeps,
}


def forbid(monkeypatch, *names):
    """Fail the test if any of these is called."""
    for name in names:
        monkeypatch.setattr(HOMES[name], name, lambda *_a, n=name, **_k: pytest.fail(f"{n} was called"))
