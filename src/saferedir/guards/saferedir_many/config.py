"""Settings of a SafeRedir guard of many concepts, and of each concept by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from saferedir.guards.config import GuardConfig
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.utils.checks import is_number

METHOD = "saferedir_many"


@dataclass(frozen=True, kw_only=True)
class SafeRedirManyConfig(GuardConfig):
    """Settings of a SafeRedir guard of many concepts.

    Attributes:
        network: sizes of the redirector, `RedirectorConfig.to_dict()`, with `row_heads` and the concepts' names.
        prompt_thresholds: one a concept, in the network's order: the prompt is redirected at score (logit) >= this value.
        image_thresholds: the same for the verdict on the denoised estimate.
        last_thresholds: from this score of the last denoised estimate on the image is `unresolved`; () for `image_thresholds`.
        off: concepts that are switched off; the others' decisions do not change by a bit.
        most: concepts that may act on one image at once, >= 1.
        scale: s, multiplier of the shift, >= 0.
        patience: image checks in a row at or above the threshold, while redirected, before the shift is lengthened.
        escalation_scale: factor on `scale` then, >= 1.
        calibration: concept -> how its thresholds were chosen and what they do.
    """

    network: dict[str, Any] = field(default_factory=dict)
    prompt_thresholds: tuple[float, ...] = ()
    image_thresholds: tuple[float, ...] = ()
    last_thresholds: tuple[float, ...] = ()
    off: tuple[str, ...] = ()
    most: int = 4
    scale: float = 1.0
    patience: int = 3
    escalation_scale: float = 1.5
    calibration: dict[str, Any] = field(default_factory=dict)

    def validate(self) -> None:
        self.require(
            isinstance(self.network, dict) and bool(self.network.get("row_heads")), "network", "one with row_heads"
        )
        count = len(self.concepts)
        for name in ("prompt_thresholds", "image_thresholds", "last_thresholds"):
            values = getattr(self, name)
            fits = len(values) == count or (name == "last_thresholds" and not values)
            self.require(fits and all(map(is_number, values)), name, f"{count} numbers, one a concept")
        unknown = [name for name in self.off if name not in self.concepts]
        self.require(not unknown, "off", f"some of {', '.join(self.concepts)}")
        self.require_whole("most", "patience", at_least=1)
        self.require_number("scale", at_least=0)
        self.require_number("escalation_scale", at_least=1)

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the concepts, in the order of the rows."""
        return tuple(self.network.get("concepts", ()))


def alone(config: SafeRedirManyConfig, number: int) -> SafeRedirConfig:
    """The settings of one of the concepts as a guard of its own."""
    name = config.concepts[number]
    record = dict(config.calibration.get(name, {}))
    return SafeRedirConfig(
        concept=name,
        prompt_threshold=config.prompt_thresholds[number],
        image_threshold=config.image_thresholds[number],
        measured=record.pop("measured", {}),
        calibration=record,
        training=config.training,
    )
