"""Warnings about prompts that need more than their file (W7 to W9): the model's tokenizer, the guard's name, its training files.

Imports config, records and prompt_files. Used by plan; those of the file alone: prompt_files/cautions.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saferedir.bench.config import Matrix
from saferedir.bench.prompt_files import overlap_warnings, subset_warnings, text_checksums, token_warnings
from saferedir.bench.records import BARE
from saferedir.prompts import PromptSet


class Cautions:
    """Of one matrix. Reads each training file once, when a guard that was made from it is first met."""

    def __init__(self, matrix: Matrix) -> None:
        self._guards = matrix.guard
        self._known: dict[str, frozenset[str]] = {}  # file -> checksums of its texts

    def of(self, concept: str, prompts: PromptSet, guard: str, pipe: Any) -> tuple[str, ...]:
        """One sentence each. Raises PromptFileError for a training file that cannot be read."""
        found = () if guard == BARE else (*subset_warnings(prompts, guard), *self._overlaps(concept, prompts, guard))
        tokenizer = getattr(pipe, "tokenizer", None)
        if tokenizer is None:
            return found

        def tokens(text: str) -> int:
            return len(tokenizer(text, truncation=False, verbose=False).input_ids)

        return (*found, *token_warnings(prompts, tokens))

    def _overlaps(self, concept: str, prompts: PromptSet, guard: str) -> tuple[str, ...]:
        """W9: prompts that the guard, or a part of its stack, was made from."""
        entry = self._guards[guard]
        found: list[str] = []
        for part in (entry, *(self._guards[name] for name in entry.stack or [])):
            for file in part.trained_on:
                path = file.replace("{concept}", concept)
                if path not in self._known:
                    self._known[path] = text_checksums(path)
                source = f"{Path(path).name}, which {guard} was made from"
                found += overlap_warnings(prompts, self._known[path], source)
        return tuple(found)
