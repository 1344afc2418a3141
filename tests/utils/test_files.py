"""Files and folders appear whole or not at all, readable as the umask says; a killed run's litter is known and goes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from saferedir.errors import OutputError
from saferedir.utils.files import (
    refuse_finished,
    replacing,
    replacing_folder,
    save_tensors,
    sweep,
    take_over,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="rights are POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_rights_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        save_tensors({"x": torch.ones(3)}, tmp_path / "x.safetensors", {"format": "pt"})
        write_json(tmp_path / "x.json", {"a": "é"})
        write_text(tmp_path / "x.txt", "é\n")
        with replacing_folder(tmp_path / "folder") as fresh:
            save_tensors({"x": torch.ones(3)}, fresh / "x.safetensors")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4 and {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], torch.ones(3))
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"a": "é"}


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    with pytest.raises(ValueError):
        write_json(tmp_path / "x", {"a": float("nan")})
    assert (tmp_path / "x").read_text() == "old" and names(tmp_path) == ["x"]


def test_an_error_leaves_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "x"
    with replacing_folder(out) as fresh:
        (fresh / "a").write_text("1")
    with pytest.raises(ZeroDivisionError), replacing_folder(out) as fresh:
        (fresh / "a").write_text("2")
        raise ZeroDivisionError
    assert (out / "a").read_text() == "1" and names(tmp_path) == ["x"]
    with replacing_folder(out) as fresh:
        (fresh / "b").write_text("3")
    assert names(out) == ["b"] and names(tmp_path) == ["x"]


def test_litter_of_a_killed_run_is_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".x.68dxdas6" / "new").mkdir(parents=True)
    (tmp_path / ".x.68dxdas6" / "new" / "001.png").write_text("half")
    (tmp_path / ".x.12.tmp").write_text("half")
    (tmp_path / ".x.12345678").mkdir()
    (tmp_path / ".x.12345678" / "theirs").write_text("not ours")
    (tmp_path / ".xy.68dxdas6").mkdir()
    (tmp_path / ".x.toolong99").mkdir()
    (tmp_path / ".x.work").mkdir()
    sweep(tmp_path / "x")
    assert names(tmp_path) == [".x.12345678", ".x.toolong99", ".x.work", ".xy.68dxdas6"]
    sweep(tmp_path / "nowhere" / "x")


def test_a_result_caught_between_two_renames_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".x.68dxdas6" / "old").mkdir(parents=True)
    (tmp_path / ".x.68dxdas6" / "old" / "a").write_text("kept")
    sweep(tmp_path / "x")
    assert names(tmp_path) == ["x"] and (tmp_path / "x" / "a").read_text() == "kept"


def test_finished_work_is_replaced_only_when_told(tmp_path: Path) -> None:
    refuse_finished(tmp_path, finished=False, overwrite=False)
    refuse_finished(tmp_path, finished=True, overwrite=True)
    with pytest.raises(OutputError, match=r"finished work; choose another --out, or give --force to replace it\.$"):
        refuse_finished(tmp_path, finished=True, overwrite=False)


def test_what_others_keep_in_a_folder_is_taken_over(tmp_path: Path) -> None:
    out = tmp_path / "x"
    (out / "deep").mkdir(parents=True)
    for name in ("ours", "theirs", "deep/more"):
        (out / name).write_text(name)
    (out / "link").symlink_to("theirs")
    with replacing_folder(out) as fresh:
        (fresh / "ours").write_text("new")
        take_over(out, fresh, without=["ours"])
    assert names(out) == ["deep", "link", "ours", "theirs"] and (out / "link").is_symlink()
    assert [(out / name).read_text() for name in ("ours", "theirs", "deep/more")] == ["new", "theirs", "deep/more"]
