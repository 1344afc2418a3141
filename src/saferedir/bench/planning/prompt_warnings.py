"""Warnings about prompts that need more than their file (W7 to W9): the model's tokenizer, the guard's name, its training files.

Those of the file alone: prompts/prompt_warnings.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saferedir.bench.planning.config import Matrix
from saferedir.bench.planning.guards import guard_parts
from saferedir.bench.records import BARE
from saferedir.errors import BenchError, PromptFileError
from saferedir.prompts import overlap_warnings, subset_warnings, text_checksums, token_warnings
from saferedir.prompts.sets import PromptSet


class PromptWarnings:
    """Of one matrix. Reads each training file once, at the start; BenchError for one that cannot be read."""

    def __init__(self, matrix: Matrix) -> None:
        self._guards = matrix.guard
        self._known: dict[str, frozenset[str]] = {}  # file -> checksums of its texts
        for name, entry in matrix.guard.items():
            for concept, prompts in matrix.concept.items():
                if guard_parts(name, matrix, concept, prompts) is not None:
                    self._read(name, concept, entry.trained_on)

    def of(self, concept: str, prompts: PromptSet, guard: str, pipe: Any) -> tuple[str, ...]:
        """One sentence each."""
        warnings = () if guard == BARE else (*subset_warnings(prompts, guard), *self._overlaps(concept, prompts, guard))
        tokenizer = getattr(pipe, "tokenizer", None)
        if tokenizer is None:
            return warnings

        def tokens(text: str) -> int:
            return len(tokenizer(text, truncation=False, verbose=False).input_ids)

        return (*warnings, *token_warnings(prompts, tokens))

    def _overlaps(self, concept: str, prompts: PromptSet, guard: str) -> tuple[str, ...]:
        """W9: prompts that the guard, or a part of its stack, was made from."""
        entry = self._guards[guard]
        warnings: list[str] = []
        for part in (entry, *(self._guards[name] for name in entry.stack or [])):
            for file in part.trained_on:
                path = file.replace("{concept}", concept)
                source = f"{Path(path).name}, which {guard} was made from"
                warnings += overlap_warnings(prompts, self._known[path], source)
        return tuple(warnings)

    def _read(self, guard: str, concept: str, files: Sequence[str]) -> None:
        for path in (file.replace("{concept}", concept) for file in files):
            if path not in self._known:
                try:
                    self._known[path] = text_checksums(path)
                except PromptFileError as error:
                    raise BenchError(
                        f"[guard.{guard}] has a file in `trained_on` that cannot be used: {error}"
                    ) from error
