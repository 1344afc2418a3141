"""Executors: who generates the shards. One process in local.py; more processes and machines by Ray in ray_executor.py.

An executor gives every shard back exactly once, generated or failed, in any order; the runner keeps what comes and tries failures
again.
"""

from __future__ import annotations

from saferedir.bench.executors.local import Executor, InProcess
from saferedir.bench.executors.work import Job, Outcome, attempt
from saferedir.bench.generation.resources import Resources
from saferedir.errors import BenchError
from saferedir.utils.names import unknown_name_message

__all__ = ["EXECUTORS", "Executor", "InProcess", "Outcome", "Job", "attempt", "make_executor"]

EXECUTORS = ("local", "ray")


def make_executor(
    name: str, *, workers: int = 1, address: str | None = None, resources: Resources | None = None
) -> Executor:
    """An executor by its name; "ray" needs the extra `ray`."""
    if name == "local":
        if workers != 1 or address is not None:
            raise BenchError("the local executor is one process; give --executor ray for --workers or --address.")
        return InProcess(resources)
    if name != "ray":
        raise BenchError(unknown_name_message("executor", name, EXECUTORS))
    from saferedir.bench.executors.ray_executor import RayExecutor

    return RayExecutor(workers=workers, address=address)
