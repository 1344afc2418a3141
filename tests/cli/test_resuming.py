"""What an interrupted `generate` left, and when the same command goes on from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saferedir.cli.output import OutputError
from saferedir.cli.resuming import UNFINISHED, copy_rows, digest_of_json, guard_digests, kept_rows

SETTINGS = {"model": "pictoworld", "seed": 0}
WANTED = [f"prompt {i}" for i in range(5)]


def left(folder: Path, images: int, **changes: Any) -> Path:
    """A folder in which a run was stopped after some images."""
    folder.mkdir(exist_ok=True)
    rows = [{"prompt": WANTED[i], "file": f"{i:03d}.png"} for i in range(images)]
    for row in rows:
        (folder / row["file"]).write_bytes(b"png")
    (folder / "summary.json").write_text(json.dumps({**SETTINGS, UNFINISHED: WANTED, "images": rows, **changes}))
    return folder


def test_whole_batches_are_kept(tmp_path: Path) -> None:
    rows = kept_rows(left(tmp_path, 3), SETTINGS, WANTED, 2)
    assert [row["file"] for row in rows] == ["000.png", "001.png"]
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    copy_rows(rows, tmp_path, fresh)
    assert sorted(path.name for path in fresh.iterdir()) == ["000.png", "001.png"]


def test_nothing_is_kept_of_a_free_finished_or_foreign_folder(tmp_path: Path) -> None:
    assert kept_rows(tmp_path / "none", SETTINGS, WANTED, 2) == []
    folder = left(tmp_path / "a", 4)
    (folder / "001.png").unlink()
    assert kept_rows(folder, SETTINGS, WANTED, 2) == []
    for text in ("[]", "{", json.dumps({**SETTINGS, "images": []})):
        (folder / "summary.json").write_text(text)
        assert kept_rows(folder, SETTINGS, WANTED, 2) == []


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [({**SETTINGS, "seed": 1}, WANTED), ({**SETTINGS, "new": 1}, WANTED), (SETTINGS, WANTED[:4])],
)
def test_images_of_other_settings_or_prompts_are_refused(
    tmp_path: Path, settings: dict[str, Any], wanted: list[str]
) -> None:
    with pytest.raises(OutputError, match="holds 4 images of a run with other prompts or settings"):
        kept_rows(left(tmp_path, 4), settings, wanted, 2)


def test_another_option_or_another_guard_has_another_digest(tmp_path: Path) -> None:
    assert digest_of_json({"steps": 2}) != digest_of_json({"steps": 2, "negative_prompt": "blue"})
    folder = tmp_path / "guard"
    folder.mkdir()
    (folder / "guard_config.json").write_text("{}")
    first = guard_digests([str(folder), "pictoworld/star", "owner/name"])
    (folder / "guard_config.json").write_text('{"a": 1}')
    second = guard_digests([str(folder), "pictoworld/star", "owner/name"])
    assert first.keys() == second.keys() == {str(folder), "pictoworld/star"}
    assert first[str(folder)] != second[str(folder)] and first["pictoworld/star"] == second["pictoworld/star"]
