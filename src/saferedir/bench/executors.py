"""Executors: who draws the shards. In-process here; more processes and machines by Ray in ray_executor.py.

An executor gives every shard back exactly once, drawn or failed, in any order; the runner keeps what comes and tries failures
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, Self

from saferedir.bench.resources import Resources
from saferedir.bench.work import Outcome, Task, attempt
from saferedir.errors import BenchError
from saferedir.utils.names import unknown_name_message

__all__ = ["EXECUTORS", "Executor", "InProcess", "Outcome", "Task", "attempt", "make_executor"]


class Executor(Protocol):
    """Draws shards; used as a context, which frees its workers."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Outcomes as they come."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class InProcess:
    """Draws one shard after the other, here. The models stay loaded between runs."""

    def __init__(self, resources: Resources | None = None) -> None:
        self.resources = resources or Resources()

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        for task in tasks:
            yield attempt(task, self.resources)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


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
    from saferedir.bench.ray_executor import RayExecutor

    return RayExecutor(workers=workers, address=address)
