"""Rates as they are measured."""

import pytest

from jacobian_lab.jobs import job
from jacobian_lab.planning.rates import measured


@pytest.fixture(autouse=True)
def measured_rates(monkeypatch):
    monkeypatch.setattr(job, "measured", measured)
