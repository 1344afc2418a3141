"""The pages of README and docs as data: their code blocks, commands and links. Imports the standard library only."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
_FENCE = re.compile(r"^```([a-z]*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: `saferedir …` within a sentence, or in a cell of a table
_SPAN = re.compile(r"(?<!`)`(saferedir [^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, language, source and first line."""

    page: Path
    language: str
    source: str
    line: int

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    """Path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page, in order; of these languages if any are given."""
    text = text_of(page)
    found = [Block(page, fence[1], fence[2], text[: fence.start(2)].count("\n") + 1) for fence in _FENCE.finditer(text)]
    return [block for block in found if not languages or block.language in languages]


def commands(block: Block) -> Iterator[list[str]]:
    """Words of every command of a shell block: lines joined, comments and what stands in a here-document left out."""
    text = re.sub(r"<<'END'\n.*?\nEND$", "", block.source, flags=re.DOTALL | re.MULTILINE)
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        for part in line.split(" && "):
            if words := shlex.split(part, comments=True):
                yield words


def spans(page: Path) -> list[list[str]]:
    """Words of every `saferedir …` that stands within a sentence, blocks left out."""
    return [found[1].split() for found in _SPAN.finditer(_FENCE.sub("", text_of(page)))]
