"""Folders of images: what is read, in which order, and what is left out with which reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from saferedir.errors import GuardConfigError
from saferedir.guards.negation.build import image_sources
from saferedir.judges.images import image_files
from saferedir.training.duo.pair_files import read_image_pairs
from saferedir.utils.file_names import named_path, shown_name
from saferedir.utils.image_folders import list_images

IMAGE = Image.new("RGB", (8, 8), "red")


def put(path: Path, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    IMAGE.save(path, kind)
    return path


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in list_images(folder).files]


def test_every_readable_ending_in_one_order_for_everyone(tmp_path: Path) -> None:
    files = ["a.PNG", "b/c.jfif", "b/d.JPE", "b.avif", "e.TiFf", "z.webp", "b/a/f.bmp"]
    for name in files:
        kind = {"jfif": "JPEG", "jpe": "JPEG", "avif": "AVIF", "tiff": "TIFF"}.get(name.rsplit(".")[-1].lower(), "PNG")
        put(tmp_path / name, kind)
    (tmp_path / "notes.txt").write_text("no image")
    expected = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path / name for name in files)]
    assert names(tmp_path) == expected and list_images(tmp_path).left_out == {}
    assert [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)] == expected
    assert [source.name for source in image_sources(tmp_path, 8, 8)] == expected


def test_hidden_copies_are_left_out_and_listed(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    for name in (
        ".ipynb_checkpoints/a-checkpoint.png",
        "__MACOSX/a.png",
        "b/.thumbs/c/a.png",
        ".b.png",
        "@eaDir/t.jpg",
    ):
        put(tmp_path / name)
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7Mac OS X")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    found = list_images(tmp_path)
    assert names(tmp_path) == ["a.png"]
    assert set(found.left_out.values()) == {"it is hidden"} and len(found.left_out) == 6
    inside = put(tmp_path / ".cache" / "mine" / "x.png").parent
    assert names(inside) == ["x.png"]  # the folder itself was asked for


def test_what_cannot_be_read_is_listed_first(tmp_path: Path) -> None:
    for name in ("a.png", ".b.png"):
        put(tmp_path / name)
    put(tmp_path / "photo", "JPEG")
    put(tmp_path / "anim.webp.part", "WEBP")
    (tmp_path / "e.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "drawing.svg").write_text("<svg/>")
    os.mkfifo(tmp_path / "pipe.png")
    assert names(tmp_path) == ["a.png"]
    assert list(list_images(tmp_path).left_out.items()) == [
        ("anim.webp.part", "its name does not end like that of an image file"),
        ("drawing.svg", ".svg files cannot be read here"),
        ("e.HEIC", ".heic files cannot be read here"),
        ("photo", "its name does not end like that of an image file"),
        ("pipe.png", "it is no regular file"),
        (".b.png", "it is hidden"),
    ]


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    folder, away = tmp_path / "set", tmp_path / "away"
    put(folder / "a.png")
    put(away / "b.png")
    (folder / "loop").symlink_to(folder)
    (folder / "other").symlink_to(away)
    (folder / "other2").symlink_to(away)
    (away / "back").symlink_to(folder)
    (folder / "c.png").symlink_to(folder / "a.png")
    (folder / "d.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "self.png").symlink_to(folder / "self.png")
    assert names(folder) == ["a.png", "c.png", "other/b.png"]
    again = "the link leads to a folder that is read already"
    assert list_images(folder).left_out == {
        "d.png": "the link leads nowhere", "loop/": again, "other/back/": again, "other2/": again,
        "self.png": "the link leads nowhere",
    }  # fmt: skip


def test_a_folder_that_may_not_be_read_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "locked" / "b.png")
    scan = os.scandir

    def refuse(path: os.PathLike[str]) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert names(tmp_path) == ["a.png"]
    assert list_images(tmp_path).left_out == {"locked/": "the folder cannot be opened (permission denied)"}


def test_names_that_are_no_utf8_have_one_escape(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.png"
    IMAGE.save(raw, "PNG")
    path = Path(os.fsdecode(raw))
    assert shown_name(path.relative_to(tmp_path)) == "caf\\xe9.png" and shown_name("é") == "é"
    assert named_path(tmp_path, "caf\\xe9.png") == path
    assert named_path(tmp_path, "plain.png") == tmp_path / "plain.png"
    put(tmp_path / "caf\\xe9.png")
    assert named_path(tmp_path, "caf\\xe9.png") == tmp_path / "caf\\xe9.png"
    assert shown_name("\ud800") == "\\ud800"


def test_pairs_take_the_same_files_and_never_the_wrong_partner(tmp_path: Path) -> None:
    for side in ("unsafe", "safe"):
        for name, kind in (("0.png", "PNG"), ("1.jfif", "JPEG"), ("2.tif", "TIFF")):
            put(tmp_path / side / name, kind)
        put(tmp_path / side / "._0.png")
        (tmp_path / side / "3.heic").write_bytes(b"ftypheic")
    with pytest.warns(UserWarning, match=r"4 image files in .* are left out: unsafe/3\.heic \(\.heic files"):
        pairs = read_image_pairs(tmp_path)
    assert [(pair.unsafe.name, pair.safe.name) for pair in pairs] == [(n, n) for n in ("0.png", "1.jfif", "2.tif")]
    (tmp_path / "unsafe" / "1.jfif").rename(tmp_path / "unsafe" / "1.heic")
    (tmp_path / "safe" / "2.tif").rename(tmp_path / "safe" / "2.heic")
    with pytest.raises(GuardConfigError, match="wrong partners"):  # two and two, but 2.tif would get 1.jfif
        read_image_pairs(tmp_path)
