"""Folders of images: every file that can be read, in one order, and every image file that is left out, with the reason.

Files are sorted by the parts of their path below the folder. Left out are hidden files and folders
(`.ipynb_checkpoints`, `._a.png`), what operating systems leave in folders, formats that Pillow does not decode here,
and links that lead nowhere or to a folder that is read already.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from saferedir.utils.file_names import shown_name
from saferedir.utils.images import image_suffixes

#: folders of copies and thumbnails that other programs make
_LITTER = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})
#: endings of images whether or not Pillow can read them
_IMAGE_SUFFIXES = frozenset(
    ".avif .heic .heif .hif .jxl .jxr .webp .jp2 .svg .eps .wmf .emf .exr .hdr .psb .xcf .kra "
    ".dng .cr2 .cr3 .nef .arw .raf .orf .rw2".split()
)
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
_DATA_SUFFIXES = frozenset(".txt .json .jsonl .csv .tsv .md .html .xml .yaml .npy .npz .parquet .safetensors".split())


class ImageFolder(NamedTuple):
    """What a folder holds: the files to read, in order, and the image files left out, name below the folder -> why."""

    files: tuple[Path, ...]
    left_out: Mapping[str, str]


def list_images(folder: Path, *, is_flat: bool = False) -> ImageFolder:
    """All image files in a folder and below; with `is_flat` only those in the folder itself.

    Raises:
        OSError: there is no such folder, or it may not be read.
    """
    walk = _Walk(folder, image_suffixes(), is_flat)
    walk.read(folder, is_hidden=False)
    while walk.links:  # after all true folders, so that a file has its true name
        walk.follow()
    left_out = sorted(walk.left_out.items(), key=lambda item: (item[1] == _HIDDEN, item[0]))
    return ImageFolder(tuple(sorted(walk.files)), dict(left_out))


_HIDDEN = "it is hidden"


class _Walk:
    def __init__(self, root: Path, suffixes: frozenset[str], is_flat: bool) -> None:
        self.root, self.suffixes, self.is_flat = root, suffixes, is_flat
        self.files: list[Path] = []
        self.left_out: dict[str, str] = {}
        self.links: list[Path] = []
        self.visited: set[tuple[int, int]] = set()

    def read(self, start: Path, is_hidden: bool) -> None:
        """One folder and all true folders below it."""
        waiting = [(start, is_hidden)]
        while waiting:
            folder, hidden = waiting.pop()
            try:
                facts = folder.stat()
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                if folder == self.root:
                    raise
                self._leave_out(folder, f"the folder cannot be opened ({(error.strerror or str(error)).lower()})", "/")
                continue
            self.visited.add((facts.st_dev, facts.st_ino))
            for entry in entries:
                path, is_hidden = folder / entry.name, hidden or entry.name.startswith(".") or entry.name in _LITTER
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((path, is_hidden))
                elif entry.is_symlink() and path.is_dir():
                    if not is_hidden:
                        self.links.append(path)
                else:
                    self._take(path, is_hidden)

    def follow(self) -> None:
        """Every link to a folder that is not read yet; those found there come next."""
        links, self.links = sorted(self.links), []
        for path in links:
            facts = path.stat()
            if (facts.st_dev, facts.st_ino) in self.visited:
                self._leave_out(path, "the link leads to a folder that is read already", "/")
            else:
                self.read(path, is_hidden=False)

    def _take(self, path: Path, is_hidden: bool) -> None:
        suffix = path.suffix.lower()
        if suffix not in self.suffixes:
            if suffix in _IMAGE_SUFFIXES:
                self._leave_out(path, _HIDDEN if is_hidden else f"{suffix} files cannot be read here")
            elif not is_hidden and suffix not in _DATA_SUFFIXES and _looks_like_image(path):
                self._leave_out(path, "its name does not end like that of an image file")
        elif is_hidden:
            self._leave_out(path, _HIDDEN)
        elif self.is_flat and path.parent != self.root:
            self._leave_out(path, "it lies in a folder below")
        elif path.is_file():
            self.files.append(path)
        else:
            self._leave_out(path, "the link leads nowhere" if path.is_symlink() else "it is no regular file")

    def _leave_out(self, path: Path, reason: str, end: str = "") -> None:
        self.left_out[shown_name(path.relative_to(self.root)) + end] = reason


def _looks_like_image(path: Path) -> bool:
    """Whether a file begins as images do."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return False
    is_riff = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return start.startswith(_MAGIC) or is_riff or start[4:12] in (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1")
