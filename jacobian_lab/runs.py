"""The front door to jobs: a configuration, or settings by keyword, and the run that they make, open."""

import warnings
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from jacobian_lab.errors import InputError
from jacobian_lab.jobs.config import RENAMED, EditTableConfig, JacobianConfig, SchemesConfig
from jacobian_lab.jobs.kinds import JobConfig, run_job
from jacobian_lab.report.results import Results

Config = TypeVar("Config")


def run(config: JobConfig, *, progress: bool = True) -> Results:
    """Run a job of any kind.

    Args:
        config: The job: `SchemesConfig`, `EditTableConfig`, `EditConfig`, `JacobianConfig`, `LayerCountConfig`,
            `DampingConfig`, `FrontierConfig`, `LocateConfig`, `SequenceConfig`, `TransferConfig` or `TuneConfig`. Paths
            may be strings, and tuples lists.
        progress: Whether to show progress bars.

    Returns:
        The run; one that is finished is opened, one that was interrupted goes on.

    Raises:
        InputError: If anything cannot be used.

    Examples:
        >>> import jacobian_lab as jl
        >>> run = jl.run(jl.JacobianConfig(slice="0:1", layers="7-8", out="runs/run-example"), progress=False)
        >>> run.dataset["singular_value"].shape
        (1, 1, 576)
    """
    plain = _changed(config, vars(config)) if is_dataclass(config) else config
    return Results(run_job(plain, progress=progress))


def run_schemes(*, studies: Sequence[str] = (), progress: bool = True, **settings: Any) -> Results:
    """Compare target schemes under the same anchors, keys and seeds: Tables 1, 2 and 5, verdicts on J, studies.

    Args:
        studies: Further measurements while the schemes edit: ``"theorem1"``, ``"step_size"``.
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
    return run(_changed(SchemesConfig(), {"studies": tuple(studies), **settings}), progress=progress)


def run_methods(*, progress: bool = True, **settings: Any) -> Results:
    """Evaluate methods under the same anchors, keys and seeds by the paper's metrics: Tables 3, 4, 6 and 7.

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
    return run(_changed(EditTableConfig(), settings), progress=progress)


def run_jacobians(*, progress: bool = True, **settings: Any) -> Results:
    """Survey J_{l→L} of every fact and layer: spectra, verdicts and yardsticks.

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
    return run(_changed(JacobianConfig(), settings), progress=progress)


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
        >>> _ = jl.run_jacobians(slice="0:1", layers="7-8", out="runs/opened-example", progress=False)
        >>> jl.open_run("runs/opened-example").tables
        ('conditions', 'jacobian')
    """
    return Results(folder)


def _changed(config: Config, settings: dict[str, Any]) -> Config:
    """Change fields of a configuration; paths may be strings, tuples lists, nested configurations mappings."""
    every: Any = config
    names, hints = [item.name for item in fields(every)], get_type_hints(type(config))
    changes = {}
    for name, value in settings.items():
        if name in RENAMED and RENAMED[name] in names:
            warnings.warn(f"{name} is now called {RENAMED[name]}", DeprecationWarning, stacklevel=3)
            name = RENAMED[name]
        if name not in names:
            raise InputError(f"expected settings among {', '.join(names)}, got {name!r}: see the names")
        if isinstance(value, dict):
            value = _changed(getattr(config, name), value)
        elif Path in get_args(hints[name]) and value is not None:
            value = Path(value)
        changes[name] = tuple(value) if isinstance(value, list) else value
    return replace(every, **changes)
