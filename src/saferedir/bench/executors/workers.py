"""What a worker on another machine is, whether it may generate, and which shard suits it best. Pure; knows nothing of Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from saferedir.bench.executors.work import Job
from saferedir.bench.generation.generate import GenerationSpec
from saferedir.bench.generation.resources import device_of
from saferedir.bench.generation.versions import library_versions
from saferedir.pipelines.precision import precision_name


@dataclass(frozen=True)
class WorkerFacts:
    """What a worker is. `device` is what "auto" means there, `precision` the fast arithmetic of its processor."""

    place: str
    pid: int
    versions: Mapping[str, str]
    device: str
    precision: str


def unfit(spec: GenerationSpec, worker: WorkerFacts, here: WorkerFacts) -> str:
    """Why a worker must not generate this, in one sentence; "" if it may."""
    differing = [
        f"{name} {worker.versions.get(name, 'missing')} (the bench was planned with {version})"
        for name, version in spec.versions.items()
        if worker.versions.get(name) != version
    ]
    if differing:
        return f"{worker.place} has {', '.join(differing)}; install the same versions on every machine."
    if spec.model.device == "auto" and worker.device != here.device:
        return (
            f"{worker.place} generates on {worker.device!r}, but the bench was planned here on {here.device!r}; start it on a "
            "machine like the workers', or set `device` of the model in the matrix."
        )
    on_cpu = device_of(spec.model).type == "cpu"
    if on_cpu and spec.model.fast and spec.model.dtype == "float32" and worker.precision != here.precision:
        return (
            f"{worker.place} generates in {worker.precision}, but the bench was planned here in {here.precision}; set "
            "`fast = false` for the model in the matrix, or use machines with the same kind of processor."
        )
    return ""


def facts_here(place: str) -> WorkerFacts:
    """What this process is."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return WorkerFacts(place, os.getpid(), library_versions(), device, precision_name(torch.device("cpu")))


def nearest(queue: Sequence[Job], seen: Mapping[str, set[str]]) -> int:
    """Place in the queue of the job that a worker has most of loaded already; the first of equals.

    `seen`: the model it has loaded -> digests of the guards it has met on it.
    """

    def distance(job: Job) -> int:
        guards = seen.get(job.spec.model.digest)
        return 2 if guards is None else int(job.spec.guards_digest not in guards)

    return min(range(len(queue)), key=lambda place: (distance(queue[place]), place))
