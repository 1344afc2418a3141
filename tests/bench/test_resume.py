"""A bench that is killed, runs out of disk or may not write: no result is lost, none is half-written, none is generated twice."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter, namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from tests import forked

from saferedir.bench import runner as runner_module
from saferedir.bench.executors import InProcess
from saferedir.bench.generation.resources import Resources
from saferedir.bench.planning import plan as plan_module
from saferedir.bench.planning.config import Matrix
from saferedir.bench.planning.plan import Plan, make_plan
from saferedir.bench.runner import bytes_needed, check_complete, run
from saferedir.bench.storage import store as store_module
from saferedir.bench.storage.store import Store
from saferedir.errors import BenchError

MATRIX = """
title = "small"
[prompts]
forget = 4
retain = 2
neighbours = 1
look_alikes = 1
[model.pictoworld]
load = "pictoworld"
batch = 2
call = {num_inference_steps = 2, guidance_scale = 4.0}
[concept.star]
prompts = "pictoworld/star"
judge = {name = "pictoworld", preset = "star"}
[guard.saferedir]
load = "pictoworld/{concept}"
"""


def run_command(*words: str) -> None:
    """In a process of its own: the command, with shards of two images, so that there is much to lose."""
    from saferedir.cli import app

    plan_module.SHARD = 2  # type: ignore[misc]
    app(list(words))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "SHARD", 2)


@pytest.fixture(scope="module")
def resources() -> Resources:
    return Resources()


@pytest.fixture(scope="module")
def plan(resources: Resources) -> Plan:
    import tomllib

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "SHARD", 2)
        return make_plan(Matrix.model_validate(tomllib.loads(MATRIX)), resources)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, plan: Plan, resources: Resources) -> dict[str, bytes]:
    """Cells of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert run_here(folder, plan, resources) == []
    return cells(folder)


def run_here(folder: Path, plan: Plan, resources: Resources) -> list[str]:
    """Run a plan in this process; the errors of its cells."""
    store = Store(folder)
    store.prepare(0)
    with store.lock():
        records = run(plan, store, InProcess(resources))
    return [record.error for record in records if record.error]


def cells(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "cells").iterdir())}


def generated(folder: Path) -> dict[str, tuple[int, int]]:
    """Shards with what changes when one is written again."""
    found = (folder / "images").rglob("*.parquet") if (folder / "images").is_dir() else []
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found if "." not in path.stem}


def litter(folder: Path) -> list[Path]:
    """Files that are none of a finished bench's."""
    known = {".lock", "matrix.json", "plan.json", "costs.json", "report.md", "report.html"}
    return [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in known
        and (path.name.startswith(".") or path.suffix not in (".json", ".parquet"))
    ]


def start(folder: Path) -> BaseProcess:
    matrix = folder.parent / "small.toml"
    matrix.write_text(MATRIX)
    words = ("bench", "run", str(matrix), "--out", str(folder), "--no-report")
    return forked.start(run_command, *words, log=folder.parent / "log.txt")


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "seed"), [(3, 0)])
def test_killed_at_random_moments(tmp_path: Path, plan: Plan, whole: dict[str, bytes], kills: int, seed: int) -> None:
    chance, folder = random.Random(seed), tmp_path / "out"
    shards = sum(len(spec.shards) for spec in plan.image_sets.values())
    before: dict[str, tuple[int, int]] = {}
    for kill in range(kills):
        # a moment after about so many of the shards, in the midst of generating, judging or writing
        target, process = kill * shards // (kills + 1) + 1, start(folder)
        while process.is_alive() and len(generated(folder)) < target:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.2)
        process.kill()
        process.join()
        now = generated(folder)
        assert before.items() <= now.items(), "a shard was generated again"
        before = now
    last = start(folder)
    last.join()
    assert last.exitcode == 0, (tmp_path / "log.txt").read_text()
    assert before.items() <= generated(folder).items() and len(generated(folder)) == shards > len(whole)
    assert cells(folder) == whole
    assert litter(folder) == []


def test_half_written_files_are_swept_and_a_missing_judgement_is_made(
    tmp_path: Path, plan: Plan, resources: Resources, whole: dict[str, bytes]
) -> None:
    """The two states that a kill can leave behind, made by hand."""
    run_here(tmp_path, plan, resources)
    shard = min((tmp_path / "images").rglob("00????-00????.parquet"))
    (shard.parent / f".{shard.name}.123.tmp").write_bytes(b"PAR1 half")
    shard.unlink()  # its judges' files are there: they are written first
    before = generated(tmp_path)
    assert run_here(tmp_path, plan, resources) == []
    assert before.items() <= generated(tmp_path).items() and shard.is_file()
    assert cells(tmp_path) == whole and litter(tmp_path) == []


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, is_full: Any) -> Counter[str]:
    """Let files of the store's break off half-way where `is_full(name)` says so; how often each file did."""
    real, count = store_module.replacing, Counter[str]()  # type: ignore[attr-defined]

    @contextmanager
    def replacing(path: Path) -> Iterator[Path]:
        with real(path) as temporary:
            yield temporary
            if path.suffix == ".parquet" and is_full(path.name):
                os.truncate(temporary, 8)
                count[str(path)] += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary))

    monkeypatch.setattr(store_module, "replacing", replacing)
    return count


def test_a_disk_that_is_full_for_a_moment(
    tmp_path: Path, plan: Plan, resources: Resources, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter([False, False, False, True, True])
    count = fill_the_disk(monkeypatch, lambda name: next(moments, False))
    assert run_here(tmp_path, plan, resources) == []
    assert count.total() == 2
    assert cells(tmp_path) == whole and litter(tmp_path) == []


def test_a_disk_that_stays_full_leaves_errors_and_nothing_half_written(
    tmp_path: Path, plan: Plan, resources: Resources, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        count = fill_the_disk(patch, lambda name: True)
        errors = run_here(tmp_path, plan, resources)
    assert len(errors) == len(plan.cells) and all(number == 3 for number in count.values())
    assert set(errors) == {"cannot be kept: no space left on device"}
    records = [json.loads(text) for text in cells(tmp_path).values()]
    assert all(record["error"] and not record["measured"] for record in records)
    assert generated(tmp_path) == {} and litter(tmp_path) == []
    # room again: the same command makes up for it
    assert run_here(tmp_path, plan, resources) == []
    assert cells(tmp_path) == whole


def test_cells_without_a_number_end_in_one_sentence(
    tmp_path: Path, plan: Plan, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(monkeypatch, lambda name: True)
    store = Store(tmp_path)
    store.prepare(0)
    with store.lock(), pytest.raises(BenchError, match=r"^\d+ of \d+ cells have no number; .* no space left"):
        check_complete(run(plan, store, InProcess(resources)))


class Counting(InProcess):
    """Counts the shards that were generated."""

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources)
        self.generated = 0

    def run(self, tasks: Any) -> Any:
        for outcome in super().run(tasks):
            self.generated += 1
            yield outcome


@pytest.mark.parametrize("is_back", [True, False])
def test_nothing_is_drawn_that_cannot_be_kept(
    tmp_path: Path, plan: Plan, resources: Resources, monkeypatch: pytest.MonkeyPatch, is_back: bool
) -> None:
    """One shard fails and the pass ends; another pass begins only if there is room."""
    fill_the_disk(monkeypatch, lambda name: True)
    store, executor = Store(tmp_path), Counting(resources)
    store.prepare(0)
    if not is_back:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 0))
    with store.lock():
        records = run(plan, store, executor)
    assert executor.generated == (3 if is_back else 1)
    assert {record.error for record in records} == {"cannot be kept: no space left on device"}


def test_other_errors_of_keeping_do_not_end_the_pass(
    tmp_path: Path, plan: Plan, resources: Resources, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = Store.write_shard, []

    def write(self: Store, spec: Any, shard: Any, images: Any) -> None:
        if not failed:
            failed.append(shard)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(self, spec, shard, images)

    monkeypatch.setattr(Store, "write_shard", write)
    store, executor = Store(tmp_path), Counting(resources)
    store.prepare(0)
    with store.lock():
        run(plan, store, executor)
    assert executor.generated == sum(len(spec.shards) for spec in plan.image_sets.values()) + 1
    assert cells(tmp_path) == whole


def test_records_that_cannot_be_written_end_in_one_sentence(
    tmp_path: Path, plan: Plan, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "matrix.json")

    monkeypatch.setattr(runner_module, "write_json", full)
    with pytest.raises(BenchError, match=r"cannot write matrix\.json \(no space left on device\)"):
        run(plan, Store(tmp_path), InProcess(resources))


def test_the_room_needed_follows_the_images_size(plan: Plan, resources: Resources) -> None:
    raw = plan.n_images * 64 * 64 * 3  # PictoWorld generates 64 x 64
    assert raw < bytes_needed(plan, resources) < raw + plan.n_images * 4096 + 16_000_001


def test_only_our_own_litter_is_swept(tmp_path: Path) -> None:
    key = "0123456789abcdef"
    ours = [
        ".plan.json.12.tmp",
        ".report.html.7.tmp",
        "cells/.a-b.json.12.tmp",
        f"images/{key}/.000000-000002.parquet.12.tmp",
        f"images/{key}/.000000-000002.pictoworld-0a1b2c3d.parquet.12.tmp",
    ]
    foreign = [
        ".notes.tmp",
        ".notes.json.12.tmp",
        ".plan.json.tmp",
        ".plan.json.12a.tmp",
        "plan.json.12.tmp",
        "cells/.a.txt.12.tmp",
        "cells/deep/.a.json.12.tmp",
        "mine/.plan.json.12.tmp",
        "images/.000000-000002.parquet.12.tmp",
        "images/mine/.000000-000002.parquet.12.tmp",
        f"images/{key}/.notes.12.tmp",
        f"images/{key}/deep/.000000-000002.parquet.12.tmp",
    ]
    for name in (*ours, *foreign):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    (tmp_path / "cells" / ".folder.json.12.tmp").mkdir()
    with Store(tmp_path).lock():
        pass
    assert not [name for name in ours if (tmp_path / name).exists()]
    assert [name for name in foreign if not (tmp_path / name).exists()] == []


class NeverGenerates(Resources):
    """Fails a test that generates before the folder was looked at."""

    def precision(self, *_: Any) -> Any:
        raise AssertionError("an image was generated")


def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path) -> tuple[int, str]:
    """`saferedir bench run` in this process, where nothing may be generated."""
    from typer.testing import CliRunner

    from saferedir.bench import bench as bench_module
    from saferedir.cli import app

    (tmp_path / "small.toml").write_text(MATRIX)
    monkeypatch.setattr(bench_module, "Resources", NeverGenerates)
    result = CliRunner().invoke(app, ["bench", "run", str(tmp_path / "small.toml"), "--out", str(out)])
    if isinstance(result.exception, AssertionError):
        raise result.exception
    return result.exit_code, f"{result.output} {result.exception or ''}"


def test_a_folder_that_cannot_be_written_is_found_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, said = invoke(monkeypatch, tmp_path, tmp_path / "file" / "out")
    assert code != 0 and "cannot write to" in said and "choose another --out" in said


def test_too_little_room_is_found_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    code, said = invoke(monkeypatch, tmp_path, tmp_path / "out")
    assert code != 0 and "1 MB free" in said and "needs about" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_is_found_first(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BenchError, match=r"cannot write to .*\(permission denied\)"):
        Store(tmp_path / "out").prepare(0)


def test_a_second_run_is_refused_and_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare(0)
    assert litter(tmp_path) == []
    with store.lock(), pytest.raises(BenchError, match="another run is writing"), Store(tmp_path).lock():
        pass
    holder = (
        "import sys, time, pathlib; from saferedir.bench.storage.store import Store; "
        "l = Store(pathlib.Path(sys.argv[1])).lock(); l.__enter__(); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(BenchError, match="another run is writing"), store.lock():
        pass
    process.kill()
    process.wait()
    with store.lock():
        pass
