"""Under which settings of the text encoders a SafeRedir guard was trained, and what is done in a call under others.

training/saferedir writes the record, guard.py asks before every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.pipelines.families import family_of
from saferedir.pipelines.text_settings import LENGTH, TextSettings, default_settings, text_settings

#: lengths that prompts are trained at beside the pipeline's own, where the length changes their embeddings
LENGTHS = (64, 128, 256, 512)


def text_lengths(pipe: Any, call: Mapping[str, Any], wanted: Sequence[int] | None) -> tuple[int, ...]:
    """Prompt lengths to train at, ascending: those `wanted` and the call's own; () where the length changes nothing.

    None stands for `LENGTHS`, or for the call's own alone where it sets one.
    """
    defaults = default_settings(pipe, family_of(pipe))
    if LENGTH not in defaults:
        return ()
    chosen = wanted if wanted is not None else () if LENGTH in call else LENGTHS
    return tuple(sorted({*chosen, call.get(LENGTH, defaults[LENGTH])}))


def text_record(pipe: Any, call: Mapping[str, Any], lengths: Sequence[int]) -> dict[str, Any]:
    """What a guard's `training` holds of the text encoders' settings; see `TextSettings`."""
    settings = text_settings(pipe, call)
    return {"text_settings": dict(settings.values), "text_lengths": list(lengths)}


def require_trained_text(config: SafeRedirConfig, text: TextSettings) -> None:
    """GuardError where the guard was trained under other settings.

    A guard without a record of them was trained with the arguments of its `call` and the defaults for the rest. One without a
    record of any training was put together by hand: then only the encoder's layer (`clip_skip`) is known, which is the default.
    """
    require_trained_settings(
        config.training, text, f"this SafeRedir guard for {config.concept!r}", by_hand=config.mode == "default"
    )


def require_trained_settings(
    record: Mapping[str, Any], text: TextSettings, title: str, *, by_hand: bool = True
) -> None:
    """As `require_trained_text`, of a guard's `training` record; `by_hand`: whether one without a record was put together so."""
    known = text
    trained = record.get("text_settings") or dict(record.get("call") or {})
    if not record and by_hand:
        kept = {name: value for name, value in text.values.items() if name == "clip_skip"}
        known = TextSettings(kept, text.defaults, text.other_texts)
    known.require(trained, record.get("text_lengths") or (), title)
