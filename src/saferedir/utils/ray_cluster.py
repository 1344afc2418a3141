"""Joins a Ray cluster, or starts one on this machine that listens on the loopback interface only. Imports no Ray by itself."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from saferedir.errors import SaferedirError

LOOPBACK = "127.0.0.1"
#: of a cluster of our own: Ray's processes listen on the loopback interface only, and tell nobody that they run
LOCAL_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # or workers would starve beside anything else that runs
}


def connect(ray: ModuleType, address: str | None, error_class: type[SaferedirError]) -> None:
    """Join a cluster, or start one, quiet, on as many cores as this process may use; raise `error_class` if there is none."""
    quiet: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    new_cluster = {"address": "local", "include_dashboard": False, "num_cpus": cores()}
    try:
        ray.init(**({"address": address} if address else new_cluster), **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        what = f"no Ray cluster can be joined at {address!r}" if address else "Ray cannot be started here"
        advice = "start one with `ray start --head`, or leave --address out" if address else "see the logs in /tmp/ray"
        raise error_class(f"{what} ({last_line(error)}); {advice}.") from error


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while; Ray's processes inherit them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def last_line(error: BaseException) -> str:
    """What went wrong, without the traceback that Ray puts before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".")[:300] if lines else type(error).__name__
