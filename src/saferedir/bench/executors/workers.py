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
    """What a worker is.

    Attributes:
        label: where it runs, in words.
        pid: of its process.
        versions: library -> version.
        device: what "auto" means there.
        precision: the fast arithmetic of its processor.
    """

    label: str
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
        return f"{worker.label} has {', '.join(differing)}; install the same versions on every machine."
    if spec.model.device == "auto" and worker.device != here.device:
        return (
            f"{worker.label} generates on {worker.device!r}, but the bench was planned here on {here.device!r}; start it on a "
            "machine like the workers', or set `device` of the model in the matrix."
        )
    on_cpu = device_of(spec.model).type == "cpu"
    if on_cpu and spec.model.fast and spec.model.dtype == "float32" and worker.precision != here.precision:
        return (
            f"{worker.label} generates in {worker.precision}, but the bench was planned here in {here.precision}; set "
            "`fast = false` for the model in the matrix, or use machines with the same kind of processor."
        )
    return ""


def facts_here(label: str) -> WorkerFacts:
    """What this process is."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return WorkerFacts(label, os.getpid(), library_versions(), device, precision_name(torch.device("cpu")))


def nearest(queue: Sequence[Job], loaded: Mapping[str, set[str]]) -> int:
    """Index in the queue of the job that a worker has most of loaded already; the first of equals.

    `loaded`: the model it has loaded -> digests of the guards it has met on it.
    """

    def distance(job: Job) -> int:
        guards = loaded.get(job.spec.model.digest)
        return 2 if guards is None else int(job.spec.guards_digest not in guards)

    return min(range(len(queue)), key=lambda index: (distance(queue[index]), index))
