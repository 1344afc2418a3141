"""Generates shards in other processes, on this machine or many, by Ray (extra `ray`): one actor a worker, one shard at a time.

Workers only generate: the driver, this process, keeps every result, so that a worker may die at any moment and its shard goes to
another. A worker needs the same libraries as the driver and the same kind of device; it is asked before its first shard. The
number of torch threads is the driver's, for float32 images (not bf16 ones) differ in the last bits between one thread and two.
A cluster of unlike processors or GPUs is not refused, but its images are then only as alike as theirs.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Self

import torch

from saferedir.bench.executors.work import Job, Outcome, attempt
from saferedir.bench.executors.workers import WorkerFacts, facts_here, nearest, unfit
from saferedir.bench.generation.generate import GeneratedShard, GenerationSpec, Shard
from saferedir.bench.generation.resources import Resources, device_of
from saferedir.errors import BenchError
from saferedir.utils.extras import require_extra
from saferedir.utils.ray_cluster import LOCAL_ENVIRONMENT, LOOPBACK, connect, environment, last_line

#: a shard whose worker died so many times is given up for this run
DEATHS = 3
#: seconds to wait for the first worker; a busy cluster may have no room at once
START_SECONDS = 600.0


class _GeneratingActor:
    """Lives in a worker process; becomes a Ray actor."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.label = f"process {os.getpid()} on {socket.gethostname()}"
        self.resources = Resources()

    def facts(self) -> WorkerFacts:
        return facts_here(self.label)

    def generate(self, job: Job) -> tuple[GeneratedShard | None, str]:
        outcome = attempt(job, self.resources)
        return outcome.generated, outcome.error


@dataclass(eq=False)
class _Worker:
    """An actor as the driver knows it: `future` is its facts (`task` None) or its images; None if it has nothing to do."""

    actor: Any
    future: Any
    job: Job | None = None
    facts: WorkerFacts | None = None
    loaded: dict[str, set[str]] = field(default_factory=dict)

    def hand(self, job: Job) -> None:
        """Give it a shard."""
        model = job.spec.model.digest
        self.loaded = {
            model: self.loaded.get(model, set()) | {job.spec.guards_digest}
        }  # one pipeline at a time, as in Resources
        self.job, self.future = job, self.actor.generate.remote(job)


class RayExecutor:
    """Generates with Ray workers.

    Args:
        workers: how many, each with a model of its own. Each takes as many processor cores as this process has torch threads, or
            a core and a GPU where the bench was planned on one.
        address: a cluster to join ("auto", "host:port", "ray://host:port"), which is left running; None starts one on this
            machine that is shut down in the end.

    Raises BenchError when no cluster answers, when it has no room for the workers, or when a worker does not fit (`unfit`);
    MissingExtraError without Ray.
    """

    def __init__(self, workers: int = 1, address: str | None = None) -> None:
        if workers < 1:
            raise BenchError(f"workers is {workers}, expected at least 1.")
        self.count, self.address, self.threads = workers, address, torch.get_num_threads()
        self._ray: ModuleType | None = None
        self._connected = False
        self._workers: list[_Worker] = []
        self._specs: dict[str, GenerationSpec] = {}  # one of each model, to know who fits
        self._share: dict[str, int] = {}
        self._failed_starts = 0

    def __enter__(self) -> Self:
        with environment({} if self.address else LOCAL_ENVIRONMENT):
            self._ray = ray = require_extra("ray", "ray", "the Ray executor")
            if not ray.is_initialized():  # or it is the caller's, and stays
                connect(ray, self.address, BenchError)
                self._connected = True
        if not self.address and self._connected and ray.util.get_node_ip_address() != LOOPBACK:
            self.__exit__()
            raise BenchError(
                "Ray was imported before the bench, so its processes would listen on the network; set "
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 for this process, or start a cluster yourself and give its --address."
            )
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in list(self._workers):
            self._dismiss(worker)
        if self._connected and self._ray is not None:
            self._ray.shutdown()  # ends a cluster of our own, only leaves another
            self._connected = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that have answered, on whatever machine."""
        return [worker.facts.pid for worker in self._workers if worker.facts is not None]

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Outcomes as they come. Workers stay, with what they have loaded, for the next run."""
        queue, deaths = list(jobs), Counter[Shard]()
        if queue:
            self._check_room(queue)
        try:
            while queue or any(worker.job for worker in self._workers):
                self._hand_out(queue)
                worker = self._next()
                outcome = self._take(worker, queue, deaths)
                self._hand_out(queue)  # before the caller keeps the images, so that nobody idles meanwhile
                if outcome is not None:
                    yield outcome
        finally:
            for worker in [worker for worker in self._workers if worker.job]:
                self._dismiss(worker)  # the caller stopped early

    def _hand_out(self, queue: list[Job]) -> None:
        """A shard for everyone who is idle, and workers for the shards."""
        idle = [worker for worker in self._workers if worker.future is None]
        for worker in idle[: len(queue)]:
            worker.hand(queue.pop(nearest(queue, worker.loaded)))
        starting = sum(worker.facts is None for worker in self._workers)
        while starting < len(queue) and len(self._workers) < self.count:
            self._workers.append(self._start())
            starting += 1

    def _start(self) -> _Worker:
        actor = self._module.remote(_GeneratingActor).options(**self._share, max_restarts=0).remote(self.threads)
        return _Worker(actor, actor.facts.remote())

    def _next(self) -> _Worker:
        """The next worker that has an answer."""
        waiting = {worker.future: worker for worker in self._workers if worker.future is not None}
        limit = None if any(worker.facts for worker in self._workers) else START_SECONDS
        done, _ = self._module.wait(list(waiting), num_returns=1, timeout=limit)
        if not done:
            raise BenchError(
                f"no Ray worker came up in {START_SECONDS:.0f} s; see `ray status` for who holds the cluster's cores and GPUs."
            )
        return waiting[done[0]]

    def _take(self, worker: _Worker, queue: list[Job], deaths: Counter[Shard]) -> Outcome | None:
        """A worker's answer: an outcome; None if it only sent its facts, or died and its shard went back into the queue."""
        errors, job = self._module.exceptions, worker.job
        future, worker.future, worker.job = worker.future, None, None
        label = worker.facts.label if worker.facts else "a Ray worker"
        try:
            answer = self._module.get(future)
        except errors.RayError as error:
            if job is not None and isinstance(
                error, errors.RayTaskError
            ):  # it lives: only its answer could not be sent
                return Outcome(job, None, f"{label}: {last_line(error)}", label)
            self._dismiss(worker)
            if job is None:
                self._failed_starts += 1
                if self._failed_starts >= DEATHS:
                    raise BenchError(
                        f"Ray workers do not start ({last_line(error)}); each machine needs this saferedir[bench,ray]."
                    ) from error
                return None
            deaths[job.shard] += 1
            if deaths[job.shard] < DEATHS:
                queue.insert(0, job)
                return None
            return Outcome(
                job, None, f"its worker died {DEATHS} times (killed, or out of memory?), at last {label}.", label
            )
        if job is not None:
            images, problem = answer
            return Outcome(job, images, problem, label)
        self._failed_starts, worker.facts = 0, answer
        here = facts_here("this process")
        for why in (unfit(spec, answer, here) for spec in self._specs.values()):
            if why:
                raise BenchError(why)
        return None

    def _dismiss(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        with contextlib.suppress(self._module.exceptions.RayError):
            self._module.kill(worker.actor)

    def _check_room(self, jobs: Sequence[Job]) -> None:
        """Find out what a worker needs, and that the cluster has it for all of them."""
        self._specs = {job.spec.model.digest: job.spec for job in jobs}
        on_gpu = any(device_of(job.spec.model).type == "cuda" for job in jobs)
        self._share = {"num_cpus": 1, "num_gpus": 1} if on_gpu else {"num_cpus": self.threads, "num_gpus": 0}
        nodes = [node["Resources"] for node in self._module.nodes() if node["Alive"]]
        capacity = sum(
            min(
                int(node.get(kind, 0)) // share
                for kind, share in (("CPU", self._share["num_cpus"]), ("GPU", on_gpu))
                if share
            )
            for node in nodes
        )
        if capacity < self.count:
            each = "a GPU and a processor core" if on_gpu else f"{self.threads} processor core(s), one a torch thread"
            raise BenchError(
                f"{self.count} Ray worker(s) need {each} each, but there is room for {capacity}; ask for fewer --workers, or set "
                "OMP_NUM_THREADS=1 for the bench (float32 images may then differ in the last bits from other runs)."
            )

    @property
    def _module(self) -> ModuleType:
        if self._ray is None:
            raise BenchError("RayExecutor is not open; use it in a `with` block.")
        return self._ray
