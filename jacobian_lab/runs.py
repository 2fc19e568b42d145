"""The front door to jobs: settings by keyword, and the run that they make, open."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from jacobian_lab.editing.rules import RuleSettings
from jacobian_lab.errors import InputError
from jacobian_lab.jobs.config import AnchorConfig, EditTableConfig, JacobianConfig, SchemesConfig
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.report.results import Results

Config = TypeVar("Config", SchemesConfig, JacobianConfig, EditTableConfig, AnchorConfig, RuleSettings)


def run_schemes(*, studies: Sequence[str] = (), progress: bool = True, **settings: Any) -> Results:
    """Target schemes under the same anchors, keys and seeds: Tables 1, 2 and 5, verdicts on J, studies.

    Args:
        studies: What else to look at while the schemes edit: ``"theorem1"``, ``"step_size"``.
        progress: Whether to show progress bars.
        **settings: Fields of `SchemesConfig`; of a nested one as ``anchor={"steps": 10}``.

    Returns:
        The run; one that is finished is opened, one that was interrupted goes on.

    Raises:
        InputError: If anything cannot be used.

    Examples:
        >>> import jacobian_lab as jl
        >>> run = jl.run_schemes(slice="0:1", schemes=("one-layer",), survey="none", anchor={"steps": 2},
        ...                      corpus_tokens=1600, out="runs/example", progress=False)
        >>> float(run.dataset["residual_ratio"].sel(scheme="one-layer", layer=8)[0]) > 0
        True
    """
    config = _config(SchemesConfig(), settings)
    return Results(run_job(config, studies=studies, verdicts=config.survey != "none", progress=progress))


def run_methods(*, progress: bool = True, **settings: Any) -> Results:
    """Methods under the same anchors, keys and seeds, evaluated by the paper's metrics: Tables 3, 4, 6 and 7.

    Args:
        progress: Whether to show progress bars.
        **settings: Fields of `EditTableConfig`; of a nested one as ``anchor={"steps": 10}``.

    Returns:
        The run.

    Raises:
        InputError: If anything cannot be used.

    Examples:
        >>> import jacobian_lab as jl
        >>> run = jl.run_methods(slice="0:1", methods=("memit",), anchor={"steps": 2}, corpus_tokens=1600,
        ...                      held_out_tokens=64, greedy=False, out="runs/methods-example", progress=False)
        >>> run.dataset["edit"].values.tolist()
        ['unedited', 'memit']
    """
    return Results(run_job(_config(EditTableConfig(), settings), progress=progress))


def run_jacobians(*, progress: bool = True, **settings: Any) -> Results:
    """J_{l→L} of every fact and layer: spectra, verdicts and yardsticks.

    Args:
        progress: Whether to show progress bars.
        **settings: Fields of `JacobianConfig`.

    Returns:
        The run.

    Raises:
        InputError: If anything cannot be used.

    Examples:
        >>> import jacobian_lab as jl
        >>> run = jl.run_jacobians(slice="0:1", layers="7-8", out="runs/jacobian-example", progress=False)
        >>> run.dataset["singular_value"].shape
        (1, 1, 576)
    """
    return Results(run_job(_config(JacobianConfig(), settings), progress=progress))


def open_run(folder: str | Path) -> Results:
    """Open a run, to look at what it holds.

    Args:
        folder: Its folder.

    Returns:
        Its tables, figures and arrays.

    Raises:
        InputError: If there is no run, or something that it had finished is missing.

    Examples:
        >>> import jacobian_lab as jl
        >>> made = jl.run_jacobians(slice="0:1", layers="7-8", out="runs/opened-example", progress=False)
        >>> jl.open_run("runs/opened-example").tables
        ('conditions', 'jacobian')
    """
    return Results(folder)


def _config(default: Config, settings: dict[str, Any]) -> Config:
    """A configuration with some of its fields changed; paths may be strings."""
    known, hints = [each.name for each in fields(default)], get_type_hints(type(default))
    given = dict(settings)
    for name, value in settings.items():
        if name not in known:
            raise InputError(f"expected settings among {', '.join(known)}, got {name!r}: see the names")
        if isinstance(value, dict):
            given[name] = _config(getattr(default, name), value)
        elif Path in get_args(hints[name]) and value is not None:
            given[name] = Path(value)
        elif isinstance(value, list):
            given[name] = tuple(value)
    return replace(default, **given)
