"""Ray workers: the same cells as in this process, whatever dies; and every answer a worker can give, without Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.watched import Watched

from saferedir.bench.executors import Executor, InProcess, Job, ray_executor
from saferedir.bench.executors.ray_executor import DEATHS, RayExecutor
from saferedir.bench.executors.workers import WorkerFacts, facts_here, nearest, unfit
from saferedir.bench.generation.generate import GenerationSpec
from saferedir.bench.generation.resources import GuardPart, ModelSpec, Resources
from saferedir.bench.planning import plan as plan_module
from saferedir.bench.planning.config import Matrix
from saferedir.bench.planning.plan import Plan, make_plan
from saferedir.bench.runner import run
from saferedir.bench.storage.store import Store
from saferedir.errors import BenchError, MissingExtraError
from saferedir.utils.progress import SILENT, Progress

SMALL = {
    "title": "small",
    "prompts": {"forget": 4, "rephrased": 2, "retain": 4, "neighbours": 2, "look_alikes": 2},
    "model": {
        "pictoworld": {"load": "pictoworld", "batch": 2, "call": {"num_inference_steps": 2, "guidance_scale": 4.0}}
    },
    "concept": {"star": {"prompts": "pictoworld/star", "judge": {"name": "pictoworld", "preset": "star"}}},
    "guard": {"saferedir": {"load": "pictoworld/{concept}"}, "sld": {"recipe": "pictoworld/sld-max"}},
}
VERSIONS = {"saferedir": "1.0", "torch": "2.13.0", "diffusers": "0.42.1"}


def spec(model: str = "m", guard: str = "", n: int = 12, **changes: Any) -> GenerationSpec:
    """A set of images that nobody generates."""
    settings = {"load": model, "batch": 2, "dtype": "float32", "device": "auto", "fast": True, "call": {}, **changes}
    return GenerationSpec(
        model=ModelSpec(**settings, digest=model),
        guards=(GuardPart({"load": guard}),) if guard else (),
        guards_digest=guard,
        texts=("a star",) * n,
        seeds=tuple(range(n)),
        prompt_of=tuple(range(n)),
        judges=(),
        shard_size=2,
        keep_images=False,
        versions=VERSIONS,
    )


def tasks_of(*specs: GenerationSpec) -> list[Job]:
    return [Job(one, shard) for one in specs for shard in one.shards]


def facts(**changes: Any) -> WorkerFacts:
    return WorkerFacts(**{"label": "process 7 on there", "pid": 7, "versions": VERSIONS, "device": "cpu",
                          "precision": "bf16 autocast", **changes})  # fmt: skip


def test_a_worker_like_this_process_fits() -> None:
    assert unfit(spec(), facts(), facts(label="here", pid=1)) == ""
    here = facts_here("here")
    assert here.pid == os.getpid() and {"saferedir", "torch", "diffusers"} <= here.versions.keys()
    assert here.device == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("worker", "generation", "sentence"),
    [
        (facts(versions={**VERSIONS, "torch": "2.6"}), spec(), r"there has torch 2\.6 \(.* planned with 2\.13\.0\)"),
        (facts(versions={"saferedir": "1.0", "torch": "2.13.0"}), spec(), "diffusers missing"),
        (facts(device="cuda"), spec(), "generates on 'cuda', but the bench was planned here on 'cpu'"),
        (facts(precision="float32"), spec(device="cpu"), "generates in float32, but .* in bf16 autocast"),
    ],
)
def test_another_worker_does_not(worker: WorkerFacts, generation: GenerationSpec, sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence):
        raise BenchError(unfit(generation, worker, facts()))


def test_what_does_not_touch_the_images_is_allowed() -> None:
    assert unfit(spec(device="cpu"), facts(device="cuda"), facts()) == ""
    assert unfit(spec(device="cpu", fast=False), facts(precision="float32"), facts()) == ""
    assert unfit(spec(device="cpu", dtype="bfloat16"), facts(precision="float32"), facts()) == ""


def test_a_worker_goes_on_with_what_it_has_loaded() -> None:
    queue = tasks_of(spec("a", "x", 2), spec("b", "y", 2), spec("b", "z", 4))
    assert nearest(queue, {}) == 0
    assert nearest(queue, {"b": {"z"}}) == 2
    assert nearest(queue, {"b": {"other"}}) == 1
    assert nearest(queue, {"c": {"x"}}) == 0


@dataclasses.dataclass(eq=False)
class Future:
    """What worker `number` will answer: its facts, or a job's images."""

    number: int
    job: Job | None = None


class FakeRay:
    """As much of Ray as the executor uses. An answer comes when it is waited for; `dies` and `breaks` choose from the job."""

    def __init__(self, dies: Any = lambda job: False, breaks: Any = lambda job: False, **worker: Any) -> None:
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        self.dies, self.breaks, self.worker = dies, breaks, worker
        self.killed: list[Any] = []
        self.handed: list[tuple[int, Job]] = []
        self.started = 0
        self.cores = 8

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": float(self.cores)}}, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=lambda **share: SimpleNamespace(remote=self._start))

    def _start(self, threads: int) -> Any:
        self.started += 1
        number = self.started

        def generate(job: Job) -> Future:
            self.handed.append((number, job))
            return Future(number, job)

        return SimpleNamespace(
            facts=SimpleNamespace(remote=lambda: Future(number)), generate=SimpleNamespace(remote=generate)
        )

    def wait(self, futures: list[Any], num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
        chosen = random.Random(len(self.handed)).choice(futures)
        return [chosen], [future for future in futures if future is not chosen]

    def get(self, future: Future) -> Any:
        job = future.job
        if self.dies(job):
            raise self.exceptions.RayError("The actor died\n  because its process has died.")
        if self.breaks(job):
            raise self.exceptions.RayTaskError("Traceback\n  somewhere\nTypeError: cannot pickle it")
        return facts(pid=future.number, **self.worker) if job is None else (SimpleNamespace(of=job), "")

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(ray_executor, "facts_here", lambda label: facts(label=label))

    def make(ray: FakeRay, workers: int = 2) -> RayExecutor:
        executor = RayExecutor(workers)
        executor._ray = ray  # type: ignore[assignment]
        return executor

    return make


@pytest.mark.parametrize("seed", range(5))
def test_every_shard_comes_back_once_whatever_dies(fake: Any, seed: int) -> None:
    chance, dead = random.Random(seed), Counter[Any]()

    def dies(job: Job | None) -> bool:
        if job is None or dead[job.shard] == DEATHS - 1 or chance.random() < 0.6:
            return False
        dead[job.shard] += 1
        return True

    ray, jobs = FakeRay(dies), tasks_of(spec("a", n=12), spec("a", "x", n=12))
    outcomes = list(fake(ray, workers=3).run(jobs))
    assert Counter(outcome.job.shard for outcome in outcomes) == Counter(job.shard for job in jobs)
    assert all(outcome.generated.of is outcome.job and not outcome.error for outcome in outcomes)
    assert len(ray.killed) == dead.total() > 0


def test_a_shard_that_kills_is_given_up_and_the_rest_is_drawn(fake: Any) -> None:
    jobs = tasks_of(spec())
    bad = jobs[2].shard
    ray = FakeRay(dies=lambda job: job is not None and job.shard == bad)
    outcomes = {outcome.job.shard: outcome for outcome in fake(ray).run(jobs)}
    assert outcomes.pop(bad).error.startswith(f"its worker died {DEATHS} times")
    assert sum(job.shard == bad for _, job in ray.handed) == DEATHS
    assert len(outcomes) == len(jobs) - 1 and not any(outcome.error for outcome in outcomes.values())


def test_an_answer_that_cannot_be_sent_costs_no_worker(fake: Any) -> None:
    ray = FakeRay(breaks=lambda job: job is not None)
    outcomes = list(fake(ray).run(tasks_of(spec(n=4))))
    assert [outcome.error for outcome in outcomes] == ["process 7 on there: TypeError: cannot pickle it"] * 2
    assert not ray.killed


def test_workers_that_never_start_end_the_run(fake: Any) -> None:
    ray = FakeRay(dies=lambda job: job is None)
    with pytest.raises(BenchError, match=r"do not start \(because its process has died\)"):
        list(fake(ray).run(tasks_of(spec())))
    assert not ray.handed


def test_a_worker_that_does_not_fit_ends_the_run(fake: Any) -> None:
    ray = FakeRay(versions={**VERSIONS, "saferedir": "0.9"})
    with pytest.raises(BenchError, match=r"saferedir 0\.9 .* install the same versions"):
        list(fake(ray).run(tasks_of(spec())))
    assert not ray.handed


def test_workers_are_kept_and_not_more_than_needed(fake: Any) -> None:
    ray = FakeRay()
    executor = fake(ray, workers=4)
    first, second = tasks_of(spec("a", n=4)), tasks_of(spec("a", "x", n=4))
    list(executor.run(first))
    assert ray.started == 2
    list(executor.run(second))
    assert ray.started <= 4 and not ray.killed
    assert list(executor.run([])) == []
    executor.__exit__()
    assert len(ray.killed) == ray.started


def test_a_run_left_early_leaves_nobody_at_work(fake: Any) -> None:
    ray = FakeRay()
    executor = fake(ray)
    outcomes = executor.run(tasks_of(spec()))
    next(outcomes)
    outcomes.close()
    assert ray.killed and not any(worker.job for worker in executor._workers)
    assert len(list(executor.run(tasks_of(spec())))) == 6


def test_too_many_workers_are_refused(fake: Any) -> None:
    ray = FakeRay()
    ray.cores = torch.get_num_threads()
    with pytest.raises(BenchError, match=r"2 Ray worker\(s\) need .* there is room for 1; .*OMP_NUM_THREADS=1"):
        list(fake(ray).run(tasks_of(spec())))
    with pytest.raises(BenchError, match="workers is 0"):
        RayExecutor(0)
    with pytest.raises(BenchError, match="with"):
        list(RayExecutor().run(tasks_of(spec())))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    before = dict(os.environ)
    with pytest.raises(MissingExtraError, match=r"saferedir\[ray\]"), RayExecutor():
        pass
    assert dict(os.environ) == before


def run_small(folder: Path, plan: Plan, executor: Executor, progress: Progress = SILENT) -> dict[str, bytes]:
    """Cells of a whole run."""
    store = Store(folder)
    store.prepare(0)
    with store.lock():
        records = run(plan, store, executor, progress)
    assert not any(record.error for record in records)
    return {path.name: path.read_bytes() for path in sorted((folder / "cells").iterdir())}


def listeners() -> set[str]:
    """Local addresses, in hexadecimal, on which Ray's processes of this user listen."""
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A":
                sockets[columns[9]] = columns[1].split(":")[0]
    found = set()
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and b"ray" in (process / "cmdline").read_bytes():
                links = [os.readlink(handle) for handle in (process / "fd").iterdir()]
                found |= {sockets[link[8:-1]] for link in links if link.startswith("socket:") and link[8:-1] in sockets}
    return found


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_ray_gives_the_same_cells_also_when_workers_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "SHARD", 2)  # many shards, to have something to lose
    resources = Resources()
    plan = make_plan(Matrix.model_validate(SMALL), resources)
    assert len(tasks_of(*plan.image_sets.values())) > 12
    expected = run_small(tmp_path / "local", plan, InProcess(resources))
    killed = []

    def kill_two(label: str, total: int | None, done: int) -> None:
        if len(killed) < 2 and executor.pids and done > 4 * (1 + len(killed)):
            killed.append(executor.pids[0])
            os.kill(killed[-1], signal.SIGKILL)

    with RayExecutor(workers=2) as executor:
        assert run_small(tmp_path / "ray", plan, executor) == expected
        assert run_small(tmp_path / "killed", plan, executor, Watched(kill_two)) == expected
        assert len(set(killed)) == 2 and not set(killed) & set(executor.pids)
        if sys.platform == "linux":
            loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
            assert listeners() <= loopback
    import ray

    assert not ray.is_initialized()


def test_a_task_travels(tmp_path: Path) -> None:
    """A spec is plain data: what a worker gets has the same key."""
    import pickle

    job = tasks_of(dataclasses.replace(spec(), seeds=tuple(range(3, 15))))[1]
    assert job.spec.key == job.shard.key
    back = pickle.loads(pickle.dumps(job))
    assert back == job and back.spec.key == back.shard.key
