"""The executor of one process, and the protocol that every executor follows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, Self

from saferedir.bench.executors.work import Job, Outcome, attempt
from saferedir.bench.generation.resources import Resources


class Executor(Protocol):
    """Generates shards; used as a context, which frees its workers."""

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Outcomes as they come."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class InProcess:
    """Generates one shard after the other, here. The models stay loaded between runs."""

    def __init__(self, resources: Resources | None = None) -> None:
        self.resources = resources or Resources()

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        for job in jobs:
            yield attempt(job, self.resources)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None
