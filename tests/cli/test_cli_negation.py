"""`saferedir negation`: a set from images or prompts, its facts, a guard of it, and sentences for bad input."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import make_pipeline
from typer.testing import CliRunner, Result

from saferedir.cli import app
from saferedir.guard import Guard
from saferedir.guards.negation import NegationSet
from saferedir.guards.safe_denoiser import SafeDenoiser
from saferedir.guards.spell import SPELL


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def said(result: Result) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m", "", result.output))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(3):
        values = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{seed}.png")
    (folder / "[red]broken.png").write_bytes(b"no image")
    return folder


def test_build_show_and_guard(model: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "set.safetensors"
    built = invoke("negation", "build", "--images", images, "--benign", images, "--model", model, "--out", out)
    assert built.exit_code == 0, built.output
    assert "references │ 3" in said(built) and "skipped [red]broken.png: it is no image" in said(built)
    found = NegationSet.open(out)
    assert len(found) == 3 and found.benign is not None and found.facts["height"] == 32
    shown = invoke("negation", "show", out)
    assert shown.exit_code == 0 and "4x8x8" in said(shown)
    for method, cls in (("safe_denoiser", SafeDenoiser), ("spell", SPELL)):
        made = invoke("negation", "guard", out, "--concept", "star", "--method", method, "--out", tmp_path / method)
        assert made.exit_code == 0, made.output
        guard = Guard.from_pretrained(tmp_path / method)
        assert type(guard) is cls and guard.negation is not None and len(guard.negation) == 3
    assert invoke("negation", "guard", out, "--concept", "x", "--method", "duo", "--out", tmp_path / "y").exit_code == 2


def test_build_from_prompts_drops_equal_ones(model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a star\n\na moon\na star\n", encoding="utf-8")
    out = tmp_path / "set.safetensors"
    built = invoke("negation", "build", "--prompts", prompts, "--steps", 2, "--model", model, "--out", out)
    assert built.exit_code == 0, built.output
    assert len(NegationSet.open(out)) == 2


def test_bad_input_is_one_sentence(model: Path, images: Path, tmp_path: Path) -> None:
    out, empty = tmp_path / "set.safetensors", tmp_path / "empty"
    empty.mkdir()
    (empty / "none.txt").write_text("\n")
    out.write_text("mine")
    fresh = ("--model", model, "--out", tmp_path / "other.safetensors")
    cases = [
        (("--images", images, "--model", model, "--out", out), "exists; choose another --out"),
        (("--images", images, "--model", model, "--out", empty), "is a folder; give a file"),
        (("--images", empty, *fresh), "holds no image"),
        (("--images", tmp_path / "none", *fresh), "is no folder"),
        (("--prompts", empty / "none.txt", *fresh), "is empty"),
        (("--prompts", tmp_path / "none.txt", *fresh), "no such file"),
        (("--images", images, "--prompts", empty, *fresh), "give either --images or --prompts"),
    ]
    for arguments, sentence in cases:
        result = invoke("negation", "build", *arguments)
        assert result.exit_code in (1, 2) and sentence in said(result), (arguments, result.output)
        assert "Traceback" not in result.output
    assert out.read_text() == "mine" and not (tmp_path / "other.safetensors").exists()
    shown = invoke("negation", "show", images / "0.png")
    assert shown.exit_code == 1 and "is damaged" in said(shown)


def test_a_set_of_unreadable_images_leaves_nothing_behind(model: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    result = invoke(
        "negation", "build", "--images", tmp_path / "broken", "--model", model, "--out", tmp_path / "set.safetensors"
    )
    assert result.exit_code == 1 and "(1 images could not be read)" in said(result)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_files_of_any_name_and_kind_are_read_or_listed(model: Path, images: Path, tmp_path: Path) -> None:
    raw = os.fsencode(images)
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(raw + b"/caf\xe9.png", "PNG")
    (images / "a.heic").write_bytes(b"no image")
    (images / ".ipynb_checkpoints").mkdir()
    Image.new("RGB", (32, 32)).save(images / ".ipynb_checkpoints" / "0-checkpoint.png")
    out = tmp_path / "set.safetensors"
    built = invoke("negation", "build", "--images", images, "--model", model, "--out", out)
    assert built.exit_code == 0, built.output
    assert "references │ 4" in said(built) and "other files, left out │ 2" in said(built)
    assert "skipped a.heic: .heic files cannot be read here." in said(built)
    assert "skipped .ipynb_checkpoints/0-checkpoint.png: it is hidden." in said(built)


def test_references_of_a_model_with_its_own_checker_are_not_black(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checker would blacken all four prompts' images, and a set of one black reference would be left."""
    from saferedir.cli import negation

    def blacken(images: np.ndarray, clip_input: object) -> tuple[np.ndarray, list[bool]]:
        raise AssertionError("the checker was asked")

    load = negation.load_model  # type: ignore[attr-defined]

    def with_checker(*given: object, **named: object) -> object:
        pipe = load(*given, **named)
        pipe.safety_checker = blacken
        return pipe

    monkeypatch.setattr(negation, "load_model", with_checker)
    prompts, out = tmp_path / "prompts.txt", tmp_path / "set.safetensors"
    prompts.write_text("a star\na moon\na tree\na house\n", encoding="utf-8")
    built = invoke("negation", "build", "--prompts", prompts, "--steps", 2, "--model", model, "--out", out)
    assert built.exit_code == 0, built.output
    assert len(NegationSet.open(out)) == 4
