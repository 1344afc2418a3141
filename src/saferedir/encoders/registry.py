"""The encoders by name: one line each, in an explicit table that raises on a clash; classes are imported when first asked for.

To add an encoder: one file and one line here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from saferedir.encoders.base import Encoder
from saferedir.errors import EncoderError
from saferedir.utils.registry import Registry
from saferedir.utils.renamed import old_name


@dataclass(frozen=True)
class RegisteredEncoder:
    """A registered encoder.

    Attributes:
        path: "module:Class".
        about: what it is, for people.
    """

    path: str
    about: str


_REGISTRY: Registry[Encoder, RegisteredEncoder] = Registry("an encoder", EncoderError)
ENCODERS = _REGISTRY.entries


def register(name: str, entry: RegisteredEncoder) -> None:
    """Add one encoder; a name already taken is an error."""
    _REGISTRY.register(name, entry)


_HERE = "saferedir.encoders"
register("clip", RegisteredEncoder(f"{_HERE}.clip:CLIPEncoder", "CLIP, images and texts (model=…)"))
register(
    "inception", RegisteredEncoder(f"{_HERE}.inception:InceptionEncoder", "the FID's own Inception-v3 (weights=…)")
)
register(
    "pictoworld", RegisteredEncoder(f"{_HERE}.pictoworld:PictoWorldEncoder", "features of PictoWorld's judge, packaged")
)
register("callable", RegisteredEncoder(f"{_HERE}.callable:CallableEncoder", "your own function (function=module:name)"))


def encoder_names() -> list[str]:
    """Names that `load_encoder` knows, in the order of registration."""
    return list(ENCODERS)


def encoder_class(name: str) -> type[Encoder]:
    """The class of an encoder; an unknown name is one clear sentence."""
    return _REGISTRY.class_of(name)


def load_encoder(name: str, /, **options: Any) -> Encoder:
    """An encoder by name, made with its own options.

    Raises:
        EncoderError: unknown name, unknown or missing option, no model where the options say, or the encoder's own refusal.
        MetricError: no weights file where the options say. JudgeError: no function of your own there.
        MissingExtraError: an optional package is not installed.
    """
    return _REGISTRY.load(name, options)


def __getattr__(name: str) -> Any:
    return old_name(__name__, name)
