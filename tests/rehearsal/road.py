"""The user's whole road on one pipeline of models.py, in a process of its own, every stage measured and checked.

Run: python -m tests.rehearsal.road NAME WORK RESULT.json (NAME a row of `MODELS`, or "whole"). Imports the public library and
models.py. The result is written after every stage, so that a road that breaks off says how far it came and why.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tests.rehearsal.models import MODELS, WHOLE, Model
from tests.rehearsal.parts import affordable_halves
from torch import Tensor

import saferedir as sr
from saferedir.pipelines.fingerprint import backbone_fingerprint

STEPS = 2
#: (with the concept, without); a star, never asked of a network that could show one
PAIRS = [(f"a star {w}", f"a circle {w}") for w in "abcdefghijklmnopqrstuvwxyz"]
ROOT = Path(__file__).parents[2]


class Log:
    """What was measured: stage -> CPU seconds, wall seconds, peak memory in bytes."""

    def __init__(self, model: Model, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = {"name": model.name, "family": model.family, "cut": model.cut, "stages": {}}

    def note(self, **facts: Any) -> None:
        self.found.update(facts)
        self.path.write_text(json.dumps(self.found, indent=1))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        gc.collect()
        _forget_peak()
        cpu, wall = time.process_time(), time.monotonic()
        try:
            yield
        except BaseException as error:
            self.note(failed=name, error=f"{type(error).__name__}: {error}"[:600])
            raise
        cost = {"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall, "peak": _peak()}
        self.found["stages"][name] = {key: round(value, 2) for key, value in cost.items()}
        print(f"{self.found['name']}: {name}: {cost['cpu']:.1f} s CPU, {cost['peak'] / 1e9:.2f} GB", flush=True)
        self.note()


def _forget_peak() -> None:
    """Begin a new highest resident size, where Linux lets us; elsewhere peaks are those since the process began."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _peak() -> int:
    try:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def disk(path: Path) -> int:
    """Bytes below a folder."""
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def generate(pipe: Any, call: Mapping[str, Any], prompt: Any = "a star", **changes: Any) -> Any:
    """Two steps; (latents or images, or what `protect` gives)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), affordable_halves():
        given = {"prompt": prompt, "num_inference_steps": STEPS, "generator": generator, **call, **changes}
        return pipe(**given)  # the first argument is an image, at times


def values(output: Any) -> Tensor:
    """The tensor in a pipeline's output."""
    found = output.frames if hasattr(output, "frames") else output.images
    assert isinstance(found, Tensor) and bool(torch.isfinite(found).all()), "the output is not finite"
    return found.float()


def check_guarded(pipe: Any, guard: Any, call: Mapping[str, Any]) -> None:
    """A guard that fires changes the latents; one that never can leaves them bit-identical."""
    bare = values(generate(pipe, call, output_type="latent"))
    for threshold, is_same in ((1e6, True), (-1e6, False)):
        guard.config = (
            guard.config.with_changes(prompt_threshold=threshold, image_threshold=1e6)
            if hasattr(guard.config, "with_changes")
            else _replaced(guard.config, prompt_threshold=threshold, image_threshold=1e6)
        )
        with sr.attach(pipe, guard) as attached:
            guarded = values(generate(pipe, call, output_type="latent"))
        assert attached.decisions[0].fired is not is_same
        assert torch.equal(guarded, bare) is is_same, (
            f"fired {not is_same}, and the latents are the same: {not is_same}"
        )


def _replaced(config: Any, **changes: Any) -> Any:
    from dataclasses import replace

    return replace(config, **changes)


def walk(model: Model, work: Path, log: Log) -> None:
    """The road; raises at the first stage that fails."""
    work.mkdir(parents=True, exist_ok=True)
    folder, pairs, guard_folder = work / "model", work / "pairs.jsonl", work / "guard"
    with log.stage("build and save"):
        pipe = model.build()
        parameters = {
            n: sum(v.numel() for v in m.parameters()) for n, m in pipe.components.items() if hasattr(m, "parameters")
        }
        pipe.save_pretrained(folder)
        del pipe
    log.note(parameters=parameters, latent=model.latent, call=dict(model.call), model_bytes=disk(folder))
    with log.stage("load bfloat16"):
        pipe = sr.load_pipeline(folder, dtype=torch.bfloat16)
        pipe.set_progress_bar_config(disable=True)
    with log.stage("fingerprint"):
        found = backbone_fingerprint(pipe)
        assert None not in found["weights"].values() and found["architecture"]["shapes"]
    with log.stage("pairs build"):
        _cli("pairs", "build", "--concept", "star", "--anchor", "circle", "--model", str(folder), "--count", "30",
             "--out", str(pairs), "--no-padding")  # fmt: skip
    _train(pipe, model, guard_folder, log)
    log.note(guard_bytes=disk(guard_folder))
    with log.stage("two steps, attached"):
        check_guarded(pipe, sr.Guard.from_pretrained(guard_folder), model.call)
    if model.full is not None:
        with (
            log.stage("two steps at the published size, attached"),
            sr.attach(pipe, sr.Guard.from_pretrained(guard_folder)),
        ):
            # prompts as long as in training; another length is refused
            full = values(generate(pipe, {**model.call, **model.full}, output_type="latent"))
        log.note(full=list(full.shape))
    if model.duo:
        _duo(pipe, model, work, log)
    if model.negation:
        _negation(pipe, model, work, log)
    log.note(disk_bytes=disk(work))
    del pipe
    _second_processes(model, folder, guard_folder, log)
    if model.bench:
        _bench(model, work, log)
    log.note(passed=True)


def _cli(*arguments: str) -> None:
    """A command, as typed, in this process."""
    from typer.testing import CliRunner

    from saferedir.cli import app

    result = CliRunner().invoke(app, list(arguments))
    if result.exit_code:
        raise AssertionError(f"saferedir {' '.join(arguments)} ended with {result.exit_code}: {result.output[-800:]}")


def _train(pipe: Any, model: Model, out: Path, log: Log) -> None:
    from saferedir.training.saferedir.dataset import Pair
    from saferedir.training.saferedir.train import train_saferedir
    from saferedir.training.saferedir.train_config import TrainConfig

    rows = [Pair(*pair) for pair in PAIRS] + [Pair(None, "a house"), Pair(None, "a tree"), Pair(None, "a dog")]
    guidance = {key: value for key, value in model.call.items() if key == "guidance_scale"}  # no argument of `call`
    config = TrainConfig(
        steps=2, batch=4, rollouts=2, held_out_rollouts=2, rollout_steps=STEPS, rollout_batch=2, held_out=0.5,
        evaluate_every=2, call={key: value for key, value in model.call.items() if key not in guidance}, **guidance,
    )  # fmt: skip
    with log.stage("train saferedir"), affordable_halves(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train_saferedir(pipe, rows, out, concept="star", config=config)


def _duo(pipe: Any, model: Model, work: Path, log: Log) -> None:
    from saferedir.training.duo.pairs import PairConfig, make_pairs
    from saferedir.training.duo.train import train_duo
    from saferedir.training.duo.train_config import TrainConfig

    size = {key: value for key, value in model.call.items() if key in ("height", "width")}
    with log.stage("duo: two pairs"), affordable_halves():
        plan = PairConfig(count=2, steps=STEPS, strength=0.5, batch=1, call=dict(model.call))
        made = make_pairs(pipe, PAIRS[:2], work / "pairs", concept="star", config=plan)
    with log.stage("duo: two training steps"), affordable_halves(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # half precision has a noise floor, which DUO says
        shape = (size["height"], size["width"]) if size else None
        config = TrainConfig(steps=2, batch=1, rank=4, prior_weight=1.0, size=shape)
        train_duo(pipe, made, work / "duo", concept="star", config=config)
    with log.stage("duo: attached"), sr.attach(pipe, sr.Guard.from_pretrained(work / "duo")):
        values(generate(pipe, model.call, output_type="latent"))


def _negation(pipe: Any, model: Model, work: Path, log: Log) -> None:
    from PIL import Image

    from saferedir.guards.negation.build import build_negation_set, image_sources
    from saferedir.guards.safe_denoiser import SafeDenoiser
    from saferedir.pipelines.fingerprint import vae_fingerprint

    images = work / "images"
    images.mkdir()
    height, width = model.call.get("height", 512), model.call.get("width", 512)
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (width, height), colour).save(images / f"{number}.png")
    with log.stage("negation build"):
        sources = {"references": image_sources(images, height, width)}
        build_negation_set(
            pipe.vae, sources, work / "set.safetensors", facts={"height": height, "width": width}, batch=2
        )
        assert vae_fingerprint(pipe.vae) is not None
    guard = SafeDenoiser.from_set(work / "set.safetensors", concept="star", outside_window="ignore")
    call = {**model.call, "num_frames": 1} if "num_frames" in model.call else model.call  # a set of still images
    with log.stage("negation set, attached"), sr.attach(pipe, guard):
        values(generate(pipe, call, output_type="latent"))


def _second_processes(model: Model, folder: Path, guard: Path, log: Log) -> None:
    """Other processes load what this one left: in both half precisions, attached and protected, decoded."""
    for dtype in ("bfloat16", "float16"):
        task = {"folder": str(folder), "guard": str(guard), "dtype": dtype, "call": dict(model.call)}
        with log.stage(f"second process, {dtype}"):
            done = subprocess.run(
                [sys.executable, "-m", "tests.rehearsal.second", json.dumps(task)],
                cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise AssertionError(f"the second process failed: {done.stderr[-600:]}")
        log.found["stages"][f"second process, {dtype}"] |= json.loads(done.stdout.splitlines()[-1])


def _bench(model: Model, work: Path, log: Log) -> None:
    from saferedir.bench.executors import InProcess
    from saferedir.bench.generation.resources import Resources
    from saferedir.bench.planning.config import Matrix
    from saferedir.bench.planning.plan import make_plan
    from saferedir.bench.runner import run
    from saferedir.bench.storage.store import Store

    (work / "forget.txt").write_text("a star\n")
    (work / "retain.txt").write_text("a house\n")
    matrix = Matrix.model_validate(
        {
            "title": "rehearsal",
            "model": {
                "it": {
                    "load": str(work / "model"), "dtype": "bfloat16", "batch": 1,
                    "call": {"num_inference_steps": STEPS, **model.call},
                }
            },
            "concept": {
                "star": {
                    "forget": {"file": str(work / "forget.txt")},
                    "retain": {"file": str(work / "retain.txt")},
                    "judge": {"name": "pictoworld", "preset": "star"},
                }
            },
            "guard": {"saferedir": {"load": str(work / "guard")}},
        }
    )  # fmt: skip
    with log.stage("bench, two prompts, with and without"), affordable_halves():
        resources, store = Resources(), Store(work / "bench")
        plan = make_plan(matrix, resources)
        store.prepare(0)
        with store.lock():
            records = run(plan, store, InProcess(resources))
        assert records and not any(record.error for record in records), [record.error for record in records]


def main(name: str, work: Path, result: Path) -> None:
    model = WHOLE if name == "whole" else MODELS[name]
    log = Log(model, result)
    torch.manual_seed(0)
    started = time.monotonic()
    try:
        walk(model, work, log)
    finally:
        log.note(wall_seconds=round(time.monotonic() - started, 1))
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
