"""The command line: what it writes, and that every refusal is one sentence with nothing half-written.

Guards have random weights; runs take two or three steps on the embedded model.
"""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.cli.conftest import Run
from tests.tiny.dits import make_wan
from tests.tiny.parts import T5_WIDTH

from saferedir.cli.output import staged_output
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.guard import SafeRedir
from saferedir.training.saferedir.dataset import read_pairs
from saferedir.utils.packaged import list_packaged_guards, packaged_guard_path
from saferedir.utils.shared_files import with_shared_files


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guard with random weights that fires on every prompt."""
    torch.manual_seed(0)
    network = {"prompt_dim": 96, "concepts": ["star"]}
    config = SafeRedirConfig(concept="star", network=network, prompt_threshold=-100.0, image_threshold=1e9)
    return SafeRedir(config).save_pretrained(tmp_path_factory.mktemp("guards") / "star")


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------- what works


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("demo",),
        ("generate",),
        ("train", "saferedir"),
        ("pictoworld", "pairs"),
        ("guards", "list"),
        ("guards", "show"),
    ],
    ids=" ".join,
)
def test_help_teaches_with_an_example(run: Run, words: tuple[str, ...]) -> None:
    result = run(*words, "--help")
    assert result.exit_code == 0
    assert "saferedir " + " ".join(words) in " ".join(result.output.split())


def test_version(run: Run) -> None:
    result = run("--version")
    assert result.exit_code == 0 and result.output.startswith("saferedir ")


def test_generate_guarded(run: Run, guard: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    words = ("generate", "a red star", "a blue [bold] heart", "--guard", guard, "--steps", 2, "--num-images", 2)
    result = run(*words, "--out", out)
    assert result.exit_code == 0, result.output
    summary = json.loads((out / "summary.json").read_text())
    files = [image["file"] for image in summary["images"]]
    assert files == ["001-1.png", "001-2.png", "002-1.png", "002-2.png"]
    assert leftovers(out) == [*files, "summary.json"] and leftovers(out.parent) == ["out"]
    assert all(image["decisions"][0]["action"] == "redirected" for image in summary["images"])
    assert [image["decisions"][0]["image"] for image in summary["images"]] == [0, 1, 2, 3]
    assert "redirected" in result.output and "[bold]" in result.output
    assert "unguarded" not in result.output


def test_generate_without_guard_says_so_and_replaces_its_own_result_when_told(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run("generate", "a red star", "a blue heart", "--steps", 1, "--out", out)
    assert first.exit_code == 0 and "unguarded" in first.output
    refused = run("generate", "a red star", "--steps", 1, "--out", out)
    assert refused.exit_code == 1 and "finished work" in refused.stderr and "--force" in refused.stderr
    assert leftovers(out) == ["001.png", "002.png", "summary.json"] and leftovers(tmp_path) == ["out"]
    again = run("generate", "a red star", "--steps", 1, "--out", out, "--force")
    assert again.exit_code == 0, again.output
    assert leftovers(out) == ["001.png", "summary.json"] and leftovers(tmp_path) == ["out"]
    assert json.loads((out / "summary.json").read_text())["guarded"] is False


def test_generate_videos_and_give_more_arguments(run: Run, tmp_path: Path) -> None:
    """A tiny Wan pipeline from a folder, under a guard that fires and blocks."""
    make_wan().save_pretrained(tmp_path / "wan")
    network = {"prompt_dim": T5_WIDTH, "latent_channels": 16, "concepts": ["star"]}
    config = SafeRedirConfig(concept="star", network=network, prompt_threshold=-100.0, image_threshold=1e9)
    torch.manual_seed(0)
    guard = SafeRedir(config).save_pretrained(tmp_path / "star")
    call = [word for item in ("height=32", "width=48", "num_frames=5") for word in ("--call", item)]
    words = ("generate", "a star", "a heart", "--model", tmp_path / "wan", "--steps", 2, *call)
    for place, more in (("free", ()), ("blocked", ("--guard", guard, "--policy", "block"))):
        out = tmp_path / place
        result = run(*words, *more, "--out", out)
        assert result.exit_code == 0, result.output
        assert leftovers(out) == ["001.webp", "002.webp", "summary.json"]
        with Image.open(out / "001.webp") as video:
            assert video.size == (48, 32)
            if place == "free":
                assert getattr(video, "n_frames", 1) == 5
            else:
                assert video.convert("RGB").getextrema() == ((0, 0),) * 3
        summary = json.loads((out / "summary.json").read_text())
        assert (summary["height"], summary["num_frames"]) == (32, 5)
        assert [row["blocked"] for row in summary["images"]] == [place == "blocked"] * 2


def test_a_negative_prompt_serves_every_prompt_and_stays_a_text(run: Run, tmp_path: Path) -> None:
    words = ("generate", "a red house", "a blue tree", "--steps", 1)
    for name, text in (("a", "2000"), ("b", '["2000", "2000"]')):
        result = run(*words, "--call", f"negative_prompt={text}", "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    for file in ("001.png", "002.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["negative_prompt"] == "2000"
    result = run("generate", "a red star", "--seed", 2**64, "--out", tmp_path / "c")
    assert result.exit_code == 2 and "--seed" in result.stderr


def test_arguments_of_the_call_are_checked(run: Run, tmp_path: Path) -> None:
    for item, code, says in (
        ("height", 2, "is not NAME=VALUE"),
        ("guidance_scale=3", 2, "set by --guidance"),
        ("output_type=np", 2, "set by this command"),
        ("num_frames=3", 1, "takes no 'num_frames'"),
    ):
        result = run("generate", "a red star", "--steps", 1, "--call", item, "--out", tmp_path / "out")
        assert result.exit_code == code and says in " ".join(result.stderr.replace("│", " ").split())
        assert leftovers(tmp_path) == []


def test_pairs_then_training(run: Run, tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "guard"
    result = run("pictoworld", "pairs", "--task", "star", "--out", pairs, "--pairs", 80, "--benign", 20)
    assert result.exit_code == 0, result.output
    rows = read_pairs(pairs)
    assert len(rows) == 100 and sum(row.unsafe is None for row in rows) == 20
    words = ("--steps", 2, "--rollouts", 6, "--rollout-steps", 1)
    result = run("train", "saferedir", "--pairs", pairs, "--concept", "star", "--out", out, *words)
    assert result.exit_code == 0, result.output
    assert "Thresholds" in result.output and "prompt auroc" in result.output
    assert leftovers(tmp_path) == ["guard", "pairs.jsonl"]
    assert json.loads((out / "summary.json").read_text())["concept"] == "star"
    assert SafeRedir.from_pretrained(out).config.concept == "star"  # the summary does not disturb loading
    shown = run("guards", "show", out)
    assert shown.exit_code == 0 and "prompt threshold" in shown.output and "auroc" in shown.output


def test_guards_as_json(run: Run, guard: Path) -> None:
    listed, shown = run("guards", "list", "--json"), run("guards", "show", guard, "--json")
    assert [record["guard"] for record in json.loads(listed.output)] == list_packaged_guards()
    record = json.loads(shown.output)
    assert record["config"]["concept"] == "star" and record["thresholds"]["prompt"] == -100.0
    assert record["bytes"] > 1000


def test_guards_show_their_rules_and_count_the_files_that_they_share(run: Run) -> None:
    records = {record["guard"]: record for record in json.loads(run("guards", "list", "--json").output)}
    hardened, usual = (records[f"pictoworld/star{ending}"] for ending in ("", "-usual"))
    assert hardened["rules"]["latents_test"] == "refuse" and usual["rules"] == {}
    weights = (Path(hardened["folder"]) / "model.safetensors").stat().st_size
    verifier = (Path(hardened["folder"]) / "verifier.safetensors").stat().st_size
    files = sum(path.stat().st_size for path in Path(usual["folder"]).iterdir())
    own_weights = (Path(records["pictoworld/emblem-usual"]["folder"]) / "model.safetensors").stat().st_size
    assert usual["bytes"] == files + weights + verifier + (Path(hardened["folder"]) / "verifier.json").stat().st_size
    assert verifier + own_weights < records["pictoworld/emblem-usual"]["bytes"] < verifier + own_weights + 50_000
    assert json.loads(run("guards", "show", "pictoworld/star-usual", "--json").output)["bytes"] == usual["bytes"]
    assert "escalation evidence" in run("guards", "list").output


@pytest.mark.parametrize("name", ["star", "star-usual", "emblem", "emblem-usual", "pointillism", "pointillism-usual"])
def test_the_card_of_a_packaged_guard_is_its_own(name: str) -> None:
    """It names its rules and tests, and the files that it shares."""
    folder = packaged_guard_path(f"pictoworld/{name}")
    assert folder is not None
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card == with_shared_files(SafeRedir.from_pretrained(folder).card(), folder)
    is_usual = name.endswith("-usual")
    assert is_usual == ("verifier.safetensors" in card) and is_usual == ('escalation="evidence"' not in card)


def check_demo(run: Run, out: Path) -> None:
    result = run("demo", "--out", out, "--prompts", 2, "--steps", 2)
    assert result.exit_code == 0, result.output
    assert leftovers(out) == ["grid.png", "summary.json"]
    summary = json.loads((out / "summary.json").read_text())
    assert {task["concept"] for task in summary["tasks"]} == {"star", "pointillism", "emblem"}
    assert "shown, with guard" in result.output


def test_demo_with_random_guards(run: Run, guard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = {name: SafeRedir.from_pretrained(guard) for name in ("star", "pointillism", "emblem")}
    monkeypatch.setattr("saferedir.demo.demo_guards", lambda: loaded)
    check_demo(run, tmp_path / "demo")


def test_demo_with_the_packaged_guards(run: Run, tmp_path: Path) -> None:
    check_demo(run, tmp_path / "demo")


def test_demo_without_packaged_guards_says_so(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saferedir.guards.storage.packaged_guard_path", lambda name: None)
    result = run("demo", "--out", tmp_path / "demo", "--prompts", 2, "--steps", 2)
    assert result.exit_code == 1 and "no guard is called" in result.stderr
    assert leftovers(tmp_path) == []


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (
            ("generate", "a", "--guard", "pictoworld/nothing", "--out", "OUT"),
            1,
            "no guard is called 'pictoworld/nothing'",
        ),
        (("generate", "a", "--model", "nothing", "--out", "OUT"), 1, "no pipeline is called 'nothing'"),
        (("generate", "--out", "OUT"), 2, "give prompts in quotes"),
        (("generate", " ", "--out", "OUT"), 2, "a prompt is empty"),
        (("generate", "a", "--steps", 0, "--out", "OUT"), 2, "steps"),
        (("generate", "a", "--dtype", "int8", "--out", "OUT"), 2, "int8"),
        (("generate", "a", "--device", "abacus", "--out", "OUT"), 2, "abacus"),
        (("generate", "a", "--out", "FOREIGN"), 1, "is not empty and holds no earlier result"),
        (("generate", "a", "--out", "FILE"), 1, "is a file"),
        (("generate", "a", "--out", "FILE/below"), 1, "cannot write to"),
        (("generate", "a", "--out", "/proc/saferedir"), 1, "cannot write"),
        (("demo", "--out", "FOREIGN"), 1, "is not empty"),
        (("pictoworld", "pairs", "--task", "moon", "--out", "OUT"), 1, "the tasks are star, pointillism, emblem"),
        (("pictoworld", "pairs", "--task", "star", "--out", "FILE"), 1, "is no pairs file"),
        (("pictoworld", "train", "--out", "OUT"), 1, "run from a clone: python -m tools.pictoworld train"),
        (("pictoworld", "guards"), 1, "run from a clone: python -m tools.pictoworld guards"),
        (("pictoworld", "report"), 1, "run from a clone: python -m tools.pictoworld report"),
        (("train", "saferedir", "--pairs", "MISSING", "--concept", "a", "--out", "OUT"), 1, "There is no pairs file"),
        (("train", "saferedir", "--pairs", "BAD", "--concept", "a", "--out", "OUT"), 1, "line 2 is not JSON"),
        (("train", "saferedir", "--pairs", "BAD", "--concept", "a", "--out", "FOREIGN"), 1, "holds no guard"),
        (("train", "saferedir", "--pairs", "BAD", "--out", "OUT"), 2, "concept"),
        (("guards", "show", "pictoworld/nothing"), 1, "no guard is called"),
        (("generate", "a red star", "caf\udce9", "--out", "OUT"), 2, "'caf\\xe9' is not UTF-8"),
        (("train", "saferedir", "--pairs", "BAD", "--concept", "caf\udce9", "--out", "OUT"), 2, "is not UTF-8"),
        (("train", "duo", "--concept=caf\udce9", "--out", "OUT"), 2, "is not UTF-8"),
    ],
)
def test_bad_input(run: Run, tmp_path: Path, words: tuple[object, ...], code: int, says: str) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "bad").write_text('{"unsafe": "a star", "safe": "a circle"}\n{"unsafe": "a star"\n')
    before = leftovers(tmp_path)
    places = {
        "OUT": "x/out",
        "FOREIGN": "foreign",
        "FILE/below": "file/below",
        "FILE": "file",
        "MISSING": "no",
        "BAD": "bad",
    }
    result = run(*(tmp_path / places[word] if word in places else word for word in words))
    assert result.exit_code == code, result.output
    assert says in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.output
    if code == 1:
        assert result.stderr.count("error:") == 1 and len(result.stderr.strip().splitlines()) == 1
    assert leftovers(tmp_path) == before and leftovers(tmp_path / "foreign") == ["notes.txt"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "a"),
        ("demo",),
        ("pictoworld", "pairs", "--task", "star"),
        ("train", "saferedir", "--pairs", "none", "--concept", "star"),
    ],
    ids=" ".join,
)
def test_a_full_disk_is_noticed_before_any_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    result = run(*words, "--out", tmp_path / "x" / "out")
    assert result.exit_code == 1 and "MB free, but this needs about" in result.stderr
    assert leftovers(tmp_path) == []


def test_a_disk_that_fills_up_midway_leaves_the_earlier_result(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    out = tmp_path / "out"
    assert run("generate", "a red star", "--steps", 1, "--out", out).exit_code == 0
    before = (out / "summary.json").read_text()

    def full(self: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Image.Image, "save", full)
    result = run("generate", "a blue heart", "--steps", 1, "--out", out, "--force")
    assert result.exit_code == 1 and "no space is left" in result.stderr
    assert leftovers(tmp_path) == ["out"] and (out / "summary.json").read_text() == before


def test_files_of_the_user_inside_an_earlier_result_are_never_lost(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("generate", "a red star", "--steps", 1, "--out", out).exit_code == 0
    (out / "notes.txt").write_text("mine")
    result = run("generate", "a red star", "--steps", 1, "--out", out)
    assert result.exit_code == 1 and "notes.txt" in result.stderr
    assert (out / "notes.txt").read_text() == "mine"


def test_debug_keeps_the_traceback(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEREDIR_DEBUG", "1")
    result = run("guards", "show", "pictoworld/nothing")
    assert result.exit_code == 1 and isinstance(result.exception, FileNotFoundError)


def test_an_interrupted_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staged_output(tmp_path / "a" / "b") as (folder, _):
        (folder / "half.png").write_bytes(b"half")
        raise KeyboardInterrupt
    assert leftovers(tmp_path) == []


def test_help_imports_neither_diffusers_nor_the_demo() -> None:
    code = "import sys, saferedir.cli; sys.exit(bool({'diffusers', 'saferedir.demo', 'saferedir.pictoworld'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
