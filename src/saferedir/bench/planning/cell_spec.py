"""What a plan says of a cell and of its prompts: plain data, so that counting and judging again need neither model nor guard."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from saferedir.bench.records import CellName, Protocol, name_from_dict

#: images of each set at least, for a distance between sets
MIN_IMAGES = 10


@dataclass(frozen=True)
class EncoderUse:
    """What a cell takes of an encoder, as plain data in the plan.

    Attributes:
        key: of the encoder (`EncoderSpec.key`).
        texts: digest of the cell's prompts, "" where the encoder reads no texts.
        reference: checksum of the reference images, "" for none.
        without: digest of the prompts without the concept, "" for none.
    """

    key: str
    texts: str = ""
    reference: str = ""
    without: str = ""


@dataclass(frozen=True)
class PromptFacts:
    """What is kept of a prompt set: what should be shown, checksums, and the texts only where they may be shown."""

    name: str
    expected: tuple[Mapping[str, str], ...]
    sha256: tuple[str, ...]
    texts: tuple[str, ...] | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class CellSpec:
    """One cell: its name and protocol, its sets of images and the bare model's for the same prompts, one a seed, and how to
    judge it.

    Attributes:
        prompts: key of the `PromptFacts` in the plan.
        judge: key of the protocol's judge (`resources.JudgeSpec.key`).
        second: "<judge>/<preset>" of further judges -> "judge", their key, and "rule", as plain data.
        guard: "method" and "digest" of the guard, {} for the bare model.
        encoders: name in the matrix -> what the cell takes of that encoder; {} leaves distances to the judge's own features.
        without: the bare model's sets of images of the forget prompts without the concept, () for none.
    """

    name: CellName
    protocol: Protocol
    threat: Mapping[str, str]
    guard: Mapping[str, str]
    versions: Mapping[str, str]
    image_sets: tuple[str, ...]
    bare: tuple[str, ...]
    prompts: str
    judge: str
    second: Mapping[str, Mapping[str, Any]]
    encoders: Mapping[str, EncoderUse] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CellSpec:
        """Inverse of `to_dict`."""
        protocol = Protocol(**{**values["protocol"], "seeds": tuple(values["protocol"]["seeds"])})
        keys: dict[str, Any] = {
            name: tuple(values[name]) for name in ("image_sets", "bare", "without") if name in values
        }
        keys["encoders"] = {name: EncoderUse(**use) for name, use in values.get("encoders", {}).items()}
        return cls(**{**values, **keys, "name": name_from_dict(values["name"]), "protocol": protocol})

    @property
    def needs(self) -> tuple[str, ...]:
        """Every set of images that its numbers come from, once."""
        return tuple(dict.fromkeys((*self.image_sets, *self.bare, *self.without)))
