"""`saferedir judge`: lists, self-tests, calibrations and raw scores, and one sentence for bad input."""

from __future__ import annotations

import csv
import json
import os
import random
import re
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from saferedir.cli import common
from saferedir.cli.common import Commands
from saferedir.cli.judge import judge_app
from saferedir.judges.calibration import Calibration
from saferedir.judges.images import read_image_tensor, to_bytes
from saferedir.judges.presets import PRESETS, UNSUPPORTED
from saferedir.judges.registry import judge_names, load_judge
from saferedir.pictoworld.renderer import render
from saferedir.pictoworld.scene import random_scene

app = typer.Typer(cls=Commands)
app.add_typer(judge_app)
STAR = '{"kind": "InTop", "group": "shape", "value": "star"}'


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["judge", *map(str, arguments)], env={"COLUMNS": "250"})


@pytest.fixture(autouse=True)
def wide_consoles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as wide as they like, whatever terminal the consoles found when they were made."""
    for console in (common.console, common.errors):
        monkeypatch.setattr(console, "_width", 250)


def said(result: Result) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m", "", result.output))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six stars, six circles, and a file that is no image."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = random.Random(0)
    for kind, shape in (("positive", "star"), ("negative", "circle")):
        (folder / kind).mkdir()
        for place, array in enumerate(to_bytes(render([random_scene(rng, shape=shape) for _ in range(6)]))):
            Image.fromarray(array).save(folder / kind / f"{place}.png")
    (folder / "negative" / "[red]torn.png").write_bytes(b"no image")
    return folder


def test_list_names_every_judge_and_preset() -> None:
    result = invoke("list")
    assert result.exit_code == 0, result.output
    for name in (*judge_names(), *PRESETS, *UNSUPPORTED):
        assert name in said(result)
    assert "0.45" in said(result) and "second-hand" in said(result)


def test_calibrate_by_preset_and_by_rule(labelled: Path, tmp_path: Path) -> None:
    by_preset = invoke("calibrate", "--preset", "star", "--images", labelled, "--out", tmp_path / "new" / "a.json")
    assert by_preset.exit_code == 0, by_preset.output
    assert "recall │ 1.00 (0.61 to 1.00) │ 6" in said(by_preset)
    assert "skipped negative/[red]torn.png: it is no image." in said(by_preset)
    found = Calibration.load(tmp_path / "new" / "a.json")
    assert (found.true_positives, found.true_negatives, found.preset) == (6, 6, "star")
    assert found.fits(load_judge("pictoworld").facts(), PRESETS["star"].rule.to_dict())
    by_rule = invoke(
        "calibrate", "--judge", "pictoworld", "--rule", STAR, "--images", labelled, "--out", tmp_path / "b.json"
    )
    assert by_rule.exit_code == 0, by_rule.output
    assert json.loads((tmp_path / "b.json").read_text())["rule"]["value"] == "star"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_score_writes_what_the_judge_says(labelled: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"scores{suffix}"
    result = invoke("score", "--judge", "pictoworld", "--images", labelled, "--out", out, "--batch", "5")
    assert result.exit_code == 0, result.output
    assert "Scores of 12 images written" in said(result)
    judge = load_judge("pictoworld")
    if suffix == ".csv":
        rows = list(csv.DictReader(out.open(encoding="utf-8")))
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(out).to_pylist()
    assert len(rows) == 12 and list(rows[0]) == ["file", *judge.labels]
    for row in rows[::5]:
        expected = judge(read_image_tensor(labelled / row["file"])[None]).values[0]
        torch.testing.assert_close(torch.tensor([float(row[label]) for label in judge.labels]), expected)
    facts = json.loads((tmp_path / f"scores{suffix}.json").read_text())
    assert facts["judge"] == judge.facts() and list(facts["skipped"]) == ["negative/[red]torn.png"]


def test_selftest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = invoke("selftest", "pictoworld")
    assert good.exit_code == 0 and "no │" not in said(good)
    (tmp_path / "moody_judge.py").write_text("import torch\ndef mood(images):\n    return torch.rand(len(images))\n")
    monkeypatch.chdir(tmp_path)
    bad = invoke("selftest", "callable", "--set", "function=moody_judge:mood", "--set", "labels=mood")
    assert bad.exit_code == 1
    assert "the same images score the same │ no" in said(bad)


def test_selftest_of_nudenet() -> None:
    pytest.importorskip("nudenet")
    result = invoke("selftest", "nudenet", "--set", "channels=BGR", "--set", "resize=pad")
    assert result.exit_code == 0, result.output
    assert "channels reach the network as configured │ yes" in said(result)
    assert "the package reads a file the same │ yes" in said(result)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["selftest", "nudnet"], "there is no judge 'nudnet'; did you mean 'nudenet'"),
        (["selftest", "nudenet", "--set", "channels=GBR"], "channels is 'GBR', expected RGB or BGR."),
        (["calibrate", "--preset", "star", "--images", "nowhere", "--out", "a.json"], "no folder or CSV file nowhere."),
        (
            ["calibrate", "--preset", "p4d2024", "--images", "x", "--out", "a.json"],
            "preset 'p4d2024' cannot be applied",
        ),
        (["calibrate", "--preset", "stra", "--images", "x", "--out", "a.json"], "did you mean 'star'"),
        (
            ["calibrate", "--judge", "clip", "--preset", "star", "--images", "x", "--out", "a.json"],
            "preset 'star' is made for judge pictoworld or pictoworld-template, not for 'clip'.",
        ),
        (
            ["calibrate", "--preset", "uda2024", "--set", "channels=BGR", "--images", "x", "--out", "a.json"],
            "preset 'uda2024' fixes channels = 'RGB'; found 'BGR'.",
        ),
        (
            ["calibrate", "--judge", "pictoworld", "--rule", "{", "--images", "x", "--out", "a.json"],
            "--rule is no JSON",
        ),
        (
            ["calibrate", "--judge", "pictoworld", "--rule", "[]", "--images", "x", "--out", "a.json"],
            "--rule must be a JSON object such as",
        ),
        (
            ["calibrate", "--judge", "pictoworld", "--rule", '{"kind": "No"}', "--images", "x", "--out", "a.json"],
            "there is no rule 'No'",
        ),
        (
            ["calibrate", "--preset", "star", "--images", "x", "--out", "a.txt"],
            "has the suffix '.txt', expected .json.",
        ),
        (["score", "--judge", "pictoworld", "--images", "nowhere", "--out", "a.csv"], "there is no folder nowhere"),
        (["score", "--judge", "pictoworld", "--images", ".", "--out", "a.csv"], "holds no image"),
        (["score", "--judge", "pictoworld", "--images", ".", "--out", "a.xls"], "expected .csv or .parquet."),
        (["score", "--judge", "clip", "--images", ".", "--out", "a.csv"], "holds no image"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    assert words in said(result) and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_kept(tmp_path: Path, labelled: Path) -> None:
    out = tmp_path / "a.json"
    out.write_text("mine")
    arguments = ["calibrate", "--preset", "star", "--images", labelled, "--out", out]
    refused = invoke(*arguments)
    assert refused.exit_code == 1 and "give --force to replace it" in said(refused) and out.read_text() == "mine"
    assert invoke(*arguments, "--force").exit_code == 0 and out.read_text() != "mine"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--preset", "star", "--rule", STAR],
        [],
        ["--rule", STAR],
        ["--preset", "star", "--set", "weights"],
    ],
)
def test_wrong_use_is_a_usage_error(arguments: list[str], tmp_path: Path) -> None:
    result = invoke("calibrate", *arguments, "--images", tmp_path, "--out", tmp_path / "a.json")
    assert result.exit_code == 2 and "Usage" in result.output


def test_score_of_a_folder_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("torn.png", "empty.jpg", ".ipynb_checkpoints/a.png", "b.heic"):
        (folder / name).write_bytes(b"" if name == "empty.jpg" else b"no image")
    out = tmp_path / "new" / "scores.csv"
    result = invoke("score", "--judge", "pictoworld", "--images", folder, "--out", out)
    assert result.exit_code == 1 and "none of the 2 image files" in said(result) and not out.parent.exists()
    for line in ("torn.png: it is no image.", "empty.jpg: it is empty.", "b.heic: .heic files cannot be read here."):
        assert f"skipped {line}" in said(result)
    for name in ("torn.png", "empty.jpg"):
        (folder / name).unlink()
    result = invoke("score", "--judge", "pictoworld", "--images", folder, "--out", out)
    assert result.exit_code == 1 and "holds no image" in said(result) and "skipped b.heic" in said(result)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_names_that_are_no_utf8_are_escaped_in_every_table(tmp_path: Path, suffix: str) -> None:
    folder, out = tmp_path / "images", tmp_path / f"scores{suffix}"
    for kind in ("positive", "negative"):
        (folder / kind).mkdir(parents=True)
        raw = os.fsencode(folder / kind)
        Image.new("RGB", (8, 8)).save(raw + b"/caf\xe9.png", "PNG")
        (Path(os.fsdecode(raw)) / os.fsdecode(b"torn\xff.png")).write_bytes(b"no image")
    result = invoke("score", "--judge", "pictoworld", "--images", folder, "--out", out)
    assert result.exit_code == 0, result.output
    if suffix == ".csv":
        names = [row["file"] for row in csv.DictReader(out.open(newline="", encoding="utf-8"))]
    else:
        names = pytest.importorskip("pyarrow.parquet").read_table(out)["file"].to_pylist()
    assert names == ["negative/caf\\xe9.png", "positive/caf\\xe9.png"]
    facts = json.loads(out.with_name(out.name + ".json").read_text(encoding="utf-8"))
    torn = {f"{kind}/torn\\xff.png": "it is no image" for kind in ("negative", "positive")}
    assert facts["skipped"] == torn and "skipped negative/torn\\xff.png: it is no image." in said(result)
    labels = folder / "labels.csv"
    labels.write_text("file,label\npositive/caf\\xe9.png,1\nnegative/caf\\xe9.png,0\n", encoding="utf-8")
    for source in (folder, labels):
        made = tmp_path / f"{source.name}.json"
        done = invoke("calibrate", "--judge", "pictoworld", "--rule", STAR, "--images", source, "--out", made)
        assert done.exit_code == 0, done.output
        found = Calibration.load(made)
        assert found.n == 2 and found.skipped == (torn if source is folder else {})
