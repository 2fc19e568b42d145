"""Ray itself: of this host alone, or a cluster that is there."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jacobian_lab.errors import InputError, first_line
from jacobian_lab.parallel.settings import ExecutorConfig

ANSWER = 5.0
"""Seconds within which a cluster is to answer."""

SHARED = ("JACOBIAN_LAB_CACHE", "HF_HUB_OFFLINE")
"""What of this process's environment a worker has too."""

_ADDRESS = re.compile(r"(?:ray://)?(?:\[(?P<bracketed>[^\[\]]+)\]|(?P<host>[^\s:/\[\]]+)):(?P<port>\d+)")
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's own variable: whether this host can be part of a cluster. Where it cannot, Ray listens on 127.0.0.1 alone."""


def ray_package() -> Any:
    """The package ray."""
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "expected the package ray for ⟨workers⟩ and ⟨ray⟩, got none: pip install 'jacobian_lab[ray]'"
        ) from error
    return ray


def check_workers(settings: ExecutorConfig) -> None:
    """Check, before anything large is loaded, that workers could be hired."""
    if settings.workers > 1 or settings.ray is not None:
        ray_package()
    if settings.ray is not None:
        _check_cluster(settings.ray)


def start(settings: ExecutorConfig, cpus: int) -> None:
    """Start Ray on this host, for this host alone, or connect to a cluster."""
    ray, address = ray_package(), settings.ray
    shared = {name: os.environ[name] for name in SHARED if name in os.environ}
    common = {
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": "error",
        "runtime_env": {"env_vars": shared},
    }
    if address is None:
        with _loopback(ray):
            ray.init(address="local", num_cpus=settings.workers * cpus, **common)
        return
    _check_cluster(address)
    try:
        ray.init(address=address, **common)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise InputError(
            f"expected a Ray cluster that takes this process at ⟨ray⟩ {address}, got {first_line(error)}: see that "
            "versions of Ray and Python, and Ray's token, are the cluster's"
        ) from error


@contextmanager
def _loopback(ray: Any) -> Iterator[None]:
    """Have what Ray starts listen on 127.0.0.1; it reads its variable when it is imported, and so do its processes."""
    constants, before = ray._private.ray_constants, os.environ.get(_CLUSTERS)
    enabled = constants.ENABLE_RAY_CLUSTER
    os.environ[_CLUSTERS], constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = enabled
        os.environ.pop(_CLUSTERS)
        os.environ.update({} if before is None else {_CLUSTERS: before})


def _check_cluster(address: str) -> None:
    """Refuse an address that is none, or where nobody answers; Ray itself would try for a minute."""
    where = _running() if address == "auto" else address
    parts = _ADDRESS.fullmatch(where)
    if parts is None:
        raise InputError(f"expected auto or HOST:PORT of a Ray cluster, got ⟨ray⟩ {where!r}: give one of these")
    try:
        socket.create_connection((parts["bracketed"] or parts["host"], int(parts["port"])), timeout=ANSWER).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise _no_cluster(f"at {where}", first_line(error)) from error


def _running() -> str:
    """The cluster that Ray finds by itself, as HOST:PORT."""
    try:
        address = ray_package()._private.services.canonicalize_bootstrap_address("auto")
    except (OSError, ValueError):
        address = None
    if address is None:
        raise _no_cluster("on this host or in RAY_ADDRESS", "none")
    return str(address)


def _no_cluster(where: str, got: str) -> InputError:
    return InputError(
        f"expected a Ray cluster {where}, got {got}: start one with `ray start --head`, or leave ⟨ray⟩ out"
    )
