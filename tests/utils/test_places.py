"""A path is never looked up on the hub, and a missing folder is named, with its neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saferedir.errors import GuardConfigError, GuardNotFoundError
from saferedir.guards.storage import find_guard
from saferedir.pipelines.loading import load_pipeline
from saferedir.training.saferedir.pairs.lengths import load_lengths
from saferedir.training.saferedir.pairs.paraphrase import load_paraphraser
from saferedir.utils.places import hub_id, missing_folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", "owner/name"),
        ("stabilityai/sdxl-turbo", "stabilityai/sdxl-turbo"),
        ("hf://owner/name", "owner/name"),
        ("hf://runs/name", "runs/name"),
        ("hf://name", None),
        ("runs/moon", None),
        ("checkpoints/moon", None),
        ("Runs/moon", None),
        ("guard/moon", None),
        ("ckpt/moon", None),
        ("./owner/name", None),
        ("../name", None),
        ("./name", None),
        ("~/name", None),
        ("/owner/name", None),
        ("name", None),
        ("a/b/c", None),
        ("here/name", None),
        ("owner/name/", None),
        ("C:\\guards\\moon", None),
    ],
)
def test_which_names_are_the_hubs(
    name: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub_id(name) == expected


@pytest.mark.parametrize("name", ["runs/mooon", "./runs/mooon", "here/mooon", "mooon", "runs/deep/mooon"])
def test_a_misspelt_folder_never_reaches_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hub(*args: Any, **options: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", hub)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", hub)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", hub)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    folder = (tmp_path / name).absolute()
    for find in (find_guard, load_pipeline):
        with pytest.raises(GuardNotFoundError, match=rf"is called '{name}' \(there is no folder .*mooon\)"):
            find(name)
    with pytest.raises(GuardConfigError, match=f"there is no folder {folder}"):
        load_lengths(name)
    if "/" in name:
        with pytest.raises(GuardConfigError, match=f"there is no folder {folder}"):
            load_paraphraser(name)


def test_near_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("moon", "sun"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "guard_config.json").write_text("{}")
    (tmp_path / "runs" / "moons").mkdir()  # holds no guard
    with pytest.raises(GuardNotFoundError, match=r"there is no folder .*runs/mooon; did you mean runs/moon\?"):
        find_guard("runs/mooon")
    with pytest.raises(GuardNotFoundError, match=r"runs/moons holds no guard_config.json; did you mean runs/moon\?"):
        find_guard("runs/moons")
    with pytest.raises(GuardNotFoundError, match=r"did you mean pictoworld/star\?"):
        find_guard("pictoworld/starr")
    assert missing_folder("nowhere/at/all", "x") == f"there is no folder {tmp_path / 'nowhere/at/all'}"


def test_an_explicit_hub_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def hub(name: str, **options: Any) -> str:
        asked.append(name)
        (tmp_path / "guard_config.json").write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    assert find_guard("hf://runs/moon") == tmp_path and find_guard("owner/moon") == tmp_path
    assert asked == ["runs/moon", "owner/moon"]
