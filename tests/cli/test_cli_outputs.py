"""Places of results on the command line: held by one process at a time, never replaced unasked, nothing lost when stopped."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import Run

from saferedir.cli import generate
from saferedir.pictoworld.world2.tasks import task_names
from saferedir.training.saferedir.dataset import read_pairs
from saferedir.utils.files import save_tensors
from saferedir.utils.locks import output_lock
from saferedir.utils.packaged import packaged_guard_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "a", "--out", "OUT"),
        ("demo", "--out", "OUT"),
        ("train", "saferedir", "--concept", "a", "--anchor", "b", "--out", "OUT"),
        ("train", "duo", "--concept", "star", "--out", "OUT"),
        ("negation", "build", "--images", "pictures", "--out", "OUT"),
        ("negation", "guard", "set.safetensors", "--concept", "a", "--out", "OUT"),
        ("guards", "calibrate", "pictoworld/star", "--out", "OUT"),
        ("pairs", "build", "--concept", "a", "--anchor", "b", "--out", "OUT"),
        ("judge", "score", "--judge", "pictoworld", "--images", "x", "--out", "OUT"),
        ("judge", "calibrate", "--judge", "pictoworld", "--images", "x", "--out", "OUT"),
        ("pictoworld", "pairs", "--task", "star", "--out", "OUT"),
        ("bench", "run", "pictoworld-quick", "--out", "OUT"),
        ("bench", "rejudge", "x", "--judge", "star=pictoworld:star", "--out", "OUT"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_second_run_is_refused_with_one_sentence(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    with output_lock(out):
        result = run(*(out if word == "OUT" else word for word in words))
        assert result.exit_code == 1 and "Traceback" not in result.output, result.output
        assert result.stderr.strip() == (
            f"error: another run is writing to {out}; wait for it, or choose another --out."
        )
    assert names(tmp_path) == []


def test_a_stopped_generate_keeps_its_images_and_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "BATCH", 2)
    words = ("generate", *(f"a red star {i}" for i in range(5)), "--steps", 1, "--guard", "pictoworld/star")
    assert run(*words, "--out", tmp_path / "whole").exit_code == 0
    save, saved = generate.save_output, []  # type: ignore[attr-defined]

    def stop_after_three(image: Any, folder: Path, stem: str) -> str:
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(stem)
        return save(image, folder, stem)

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(generate, "save_output", stop_after_three)
        stopped = run(*words, "--out", out)
    assert stopped.exit_code == 130 and "Traceback" not in stopped.output
    assert f"3 of 5 images are kept in {out}; the same command makes the rest." in " ".join(stopped.stderr.split())
    assert names(out) == ["001.png", "002.png", "003.png", "summary.json"] and names(tmp_path) == ["out", "whole"]

    other = run("generate", "a heart", "--steps", 1, "--out", out)
    assert other.exit_code == 1 and "3 images of a run with other prompts" in other.stderr
    first = (out / "001.png").stat().st_mtime_ns
    rest = run(*words, "--out", out)
    assert rest.exit_code == 0 and "2 of 5 images are there" in rest.output
    assert (out / "001.png").stat().st_mtime_ns == first, "it is taken over, not made again"
    for name in names(tmp_path / "whole"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert run(*words, "--out", out).exit_code == 1, "it is finished now"


def test_a_stopped_replacement_leaves_the_earlier_images(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run("generate", "a red star", "--steps", 1, "--out", out).exit_code == 0
    before = (out / "001.png").read_bytes()

    def stop(*args: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "save_output", stop)
    result = run("generate", "a heart", "--steps", 1, "--out", out, "--force")
    assert result.exit_code == 130 and "Nothing was written." in result.stderr
    assert (out / "001.png").read_bytes() == before and names(tmp_path) == ["out"]


def test_a_polite_kill_ends_as_ctrl_c_does(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*args: Any) -> str:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal is taken at once")

    monkeypatch.setattr(generate, "save_output", kill)
    before = signal.getsignal(signal.SIGTERM)
    result = run("generate", "a red star", "--steps", 1, "--out", tmp_path / "deep" / "out")
    assert result.exit_code == 143 and result.stderr.strip().endswith("Stopped. Nothing was written.")
    assert names(tmp_path) == [] and signal.getsignal(signal.SIGTERM) is before


def test_blocking_all_images_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    result = run(
        "generate", "a red heart", "--guard", "pictoworld/star-duo", "--policy", "block", "--out", tmp_path / "o"
    )
    assert result.exit_code == 1 and "would block every image: guards of 'duo' act on all of them" in result.stderr
    assert names(tmp_path) == []


@pytest.mark.parametrize(("task", "count"), [("star-2", 12), ("red-cross-2", 12), ("poster-1", 12)])
def test_pairs_of_the_second_world(run: Run, tmp_path: Path, task: str, count: int) -> None:
    name = next((known for known in task_names("flux") if known.startswith("poster")), "") if "poster" in task else task
    words = ("pictoworld", "pairs", "--task", f"world2/{name}", "--pairs", count, "--benign", 6)
    result = run(*words, "--out", tmp_path / "pairs.jsonl")
    assert result.exit_code == 0, result.output
    rows = read_pairs(tmp_path / "pairs.jsonl")
    pairs = [row for row in rows if row.unsafe is not None]
    assert len(rows) - len(pairs) == 6 and 0 < len(pairs) <= count and (name != task or len(pairs) == count)
    assert all(pair.unsafe != pair.safe for pair in pairs)
    again = run("pictoworld", "pairs", "--task", "world2/moon", "--out", tmp_path / "other.jsonl")
    assert again.exit_code == 1 and "task of PictoWorld 2" in " ".join(again.stderr.split())


def test_pairs_and_guards_are_replaced_only_when_told(run: Run, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    words = ("pictoworld", "pairs", "--task", "star", "--pairs", 3, "--benign", 2, "--out", pairs)
    assert run(*words).exit_code == 0
    before = pairs.read_bytes()
    again = run(*words, "--seed", 1)
    assert again.exit_code == 1 and "--force" in again.stderr and pairs.read_bytes() == before
    assert run(*words, "--seed", 1, "--force").exit_code == 0 and pairs.read_bytes() != before
    assert names(tmp_path) == ["pairs.jsonl"]


def test_what_a_killed_run_left_is_swept_by_the_next(run: Run, tmp_path: Path) -> None:
    (tmp_path / ".out.68dxdas6" / "new").mkdir(parents=True)
    (tmp_path / ".out.68dxdas6" / "new" / "001.png").write_text("half")
    assert run("generate", "a red star", "--steps", 1, "--out", tmp_path / "out").exit_code == 0
    assert names(tmp_path) == ["out"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["files"] == ["001.png", "summary.json"]


def test_guards_show_finds_a_broken_folder(run: Run, tmp_path: Path) -> None:
    whole = packaged_guard_path("pictoworld/star")
    assert whole is not None

    def broken(name: str, break_it: Callable[[Path], object], says: str) -> None:
        folder = tmp_path / name
        shutil.copytree(whole, folder)
        assert run("guards", "show", folder).exit_code == 0
        break_it(folder)
        for more in ((), ("--json",)):
            result = run("guards", "show", folder, *more)
            assert result.exit_code == 1 and says in result.stderr and result.stdout == "", result.output

    weights, config = "model.safetensors", "guard_config.json"
    facts = json.loads((whole / config).read_text())
    broken("missing", lambda folder: (folder / weights).unlink(), "model.safetensors is missing")
    broken("cut", lambda folder: (folder / weights).write_bytes((whole / weights).read_bytes()[:5000]), "is damaged")
    broken(
        "magic", lambda folder: (folder / config).write_text(json.dumps({**facts, "method": "magic"})),
        "no guard method is called 'magic'",
    )  # fmt: skip
    broken("other", lambda folder: save_tensors({"x": torch.ones(1)}, folder / weights), "does not fit the network")
    broken("config", lambda folder: (folder / config).write_text("{"), "is not JSON")
