"""How long a prompt is to a text encoder: in its tokens, or in words where no tokenizer is at hand.

Used by build.py: a pair of equal lengths moves no later token.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from saferedir.errors import GuardConfigError
from saferedir.utils.packaged import packaged_model_path
from saferedir.utils.places import hub_id, missing_folder

_UNLIMITED = 100_000  # tokenizers without a limit say 1e30


class Lengths:
    """Counts tokens (start and end included) of a `tokenizer` as transformers makes it, or words when it is None."""

    def __init__(self, tokenizer: Any = None) -> None:
        self._tokenizer = tokenizer
        self.unit = "words" if tokenizer is None else "tokens"
        limit = getattr(tokenizer, "model_max_length", None)
        self.limit: int | None = int(limit) if limit is not None and limit < _UNLIMITED else None
        self._empty = self.count("")
        self._pieces = lru_cache(maxsize=None)(lambda word: self.count(word) - self._empty)

    def count(self, text: str) -> int:
        """Length of a prompt, >= 0."""
        if self._tokenizer is None:
            return len(text.split())
        return len(self._tokenizer(text, truncation=False, verbose=False)["input_ids"])

    def fits(self, text: str) -> bool:
        """Whether the text encoder reads the prompt to its end."""
        return self.limit is None or self.count(text) <= self.limit

    def is_plain(self, text: str) -> bool:
        """Whether every word is one or two tokens: a word in more pieces was rare in the encoder's training."""
        words = text.replace(",", " ").replace(":", " ").split()
        return self._tokenizer is None or all(self._pieces(word) <= 2 for word in words)


def load_lengths(model: str | None) -> Lengths:
    """Lengths by the tokenizer of "pictoworld", a diffusers folder, a tokenizer's folder or a hub id; None: by words.

    Raises:
        GuardConfigError: the name leads to no tokenizer.
    """
    if model is None:
        return Lengths()
    from transformers import AutoTokenizer

    source = packaged_model_path(model) or Path(model).expanduser()
    repository = None if source.exists() else hub_id(model)
    if not source.exists() and repository is None:
        raise GuardConfigError(
            f"no tokenizer could be loaded from {model!r}: {missing_folder(model, 'model_index.json')}; give pictoworld, a "
            "diffusers folder or a hub id, or leave the model away to compare lengths by words."
        )
    inner = {"subfolder": "tokenizer"} if (source / "tokenizer").is_dir() or not source.exists() else {}
    try:
        return Lengths(AutoTokenizer.from_pretrained(repository or str(source), **inner))
    except Exception as error:  # whatever a foreign folder makes transformers raise
        raise GuardConfigError(
            f"no tokenizer could be loaded from {model!r} ({type(error).__name__}); give pictoworld, a diffusers folder "
            "or a hub id, or leave the model away to compare lengths by words."
        ) from error
