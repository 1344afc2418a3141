"""Merging guards of many concepts into one, exactly: every concept keeps its rows, and so its scores, bit for bit.

Possible only where the guards share their trunk, that is where they were grown from one start (`saferedir train saferedir-many
--start`): a row means nothing on another trunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from saferedir.errors import GuardConfigError
from saferedir.guards.base import Guard
from saferedir.guards.saferedir.network import Redirector
from saferedir.guards.saferedir.rows import with_rows_of
from saferedir.guards.saferedir_many import SafeRedirMany, SafeRedirManyConfig

_HEADS = "heads."
#: settings that all concepts of a guard share
_SHARED = ("most", "scale", "patience", "escalation_scale", "backbone")
_TEXT = ("text_settings", "text_lengths")


def merged(guards: Sequence[Guard[Any]]) -> SafeRedirMany:
    """One guard with the concepts of all, in their order; a concept that several share is there once.

    Args:
        guards: at least two SafeRedir guards of many concepts that share the trunk.

    Returns:
        The guard; a concept is off where it is off in every guard that has it.

    Raises:
        GuardConfigError: they share no trunk, or differ in settings or in a concept of the same name.
    """
    if len(guards) < 2:
        raise GuardConfigError("give at least two guards to merge.")
    first, *others = (_rows_of(guard) for guard in guards)
    state, concepts = dict(first.network.state_dict()), list(first.config.concepts)
    per_concept = _records(first.config)
    for guard in others:
        _require_shared(first, guard)
        theirs, records = guard.network.state_dict(), _records(guard.config)
        for number, concept in enumerate(guard.config.concepts):
            if concept not in concepts:
                state = with_rows_of(state, len(concepts), theirs, number)
                concepts.append(concept)
                per_concept[concept] = records[concept]
            elif (
                not _is_same(state, concepts.index(concept), theirs, number) or records[concept] != per_concept[concept]
            ):
                raise GuardConfigError(
                    f"the guards have different concepts of the name {concept!r}; name one of them otherwise when it is trained."
                )
    network = Redirector(replace(first.network.config, concepts=tuple(concepts)))
    network.load_state_dict(state)
    return SafeRedirMany(
        _settings(first.config, [guard.config for guard in (first, *others)], network, per_concept), network
    )


def _rows_of(guard: Guard[Any]) -> SafeRedirMany:
    if not isinstance(guard, SafeRedirMany):
        raise GuardConfigError(
            f"{guard!r} is a {guard.method} guard with a trunk of its own, so its concept cannot become a row of another guard; "
            "train the concepts together (`saferedir train saferedir-many`), or name the guards in one policy."
        )
    if guard.image_verifier is not None:
        raise GuardConfigError(
            f"{guard!r} has an image verifier, which is for its own concepts; merge guards without one."
        )
    return guard


def _require_shared(first: SafeRedirMany, other: SafeRedirMany) -> None:
    """GuardConfigError unless both have the same trunk, made for the same model under the same settings."""
    mine, theirs = first.network.state_dict(), other.network.state_dict()
    trunk = [name for name in mine if not name.startswith(_HEADS)]
    is_shared = _sizes(first) == _sizes(other) and all(torch.equal(mine[name], theirs[name]) for name in trunk)
    if not is_shared:
        raise GuardConfigError(
            "the guards have different trunks, so a concept of one would mean nothing in the other; only guards grown from one "
            "start can be merged (`saferedir train saferedir-many --start`)."
        )
    changed = [name for name in _SHARED if getattr(first.config, name) != getattr(other.config, name)]
    changed += [name for name in _TEXT if first.config.training.get(name) != other.config.training.get(name)]
    if changed:
        raise GuardConfigError(f"the guards have different settings ({', '.join(changed)}), which all concepts share.")


def _sizes(guard: SafeRedirMany) -> dict[str, Any]:
    return {**guard.network.config.to_dict(), "concepts": None}


def _records(config: SafeRedirManyConfig) -> dict[str, tuple[Any, ...]]:
    """Concept -> its thresholds and its calibration."""
    last = config.last_thresholds or config.image_thresholds
    return {
        concept: (*values, config.calibration.get(concept))
        for concept, *values in zip(
            config.concepts, config.prompt_thresholds, config.image_thresholds, last, strict=True
        )
    }


def _is_same(mine: Mapping[str, Tensor], row: int, theirs: Mapping[str, Tensor], other_row: int) -> bool:
    heads = (name for name in mine if name.startswith(_HEADS))
    return all(torch.equal(mine[name][row], theirs[name][other_row]) for name in heads)


def _settings(
    first: SafeRedirManyConfig,
    configs: Sequence[SafeRedirManyConfig],
    network: Redirector,
    records: Mapping[str, tuple[Any, ...]],
) -> SafeRedirManyConfig:
    concepts = network.config.concepts
    prompt, image, last, calibrations = zip(*(records[concept] for concept in concepts), strict=True)
    pairs: dict[str, Any] = {}
    for config in configs:
        pairs |= {name: count for name, count in config.training.get("pairs", {}).items() if name not in pairs}
    return replace(
        first,
        concept=", ".join(concepts),
        network=network.config.to_dict(),
        prompt_thresholds=prompt,
        image_thresholds=image,
        last_thresholds=last,
        off=tuple(name for name in concepts if all(name in c.off for c in configs if name in c.concepts)),
        calibration={name: record for name, record in zip(concepts, calibrations, strict=True) if record is not None},
        training={**first.training, "pairs": pairs} if first.training else {},
    )
