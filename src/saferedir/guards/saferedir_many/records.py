"""What a run of a SafeRedir guard of many concepts comes to: one record an image, or one an image and concept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.decisions import Decision, logged_only
from saferedir.guards.saferedir.state import LATE
from saferedir.guards.saferedir_many.config import METHOD, SafeRedirManyConfig
from saferedir.guards.saferedir_many.state import ManyState
from saferedir.utils.device import to_host

_LEFT_OUT = "Others acted in the place of {}, further above their thresholds; block this image."
_LATE = "That was after the layout of the image had settled; block this image."
_STILL_SHOWN = "At the end it still seemed to show {}; block this image."


class Readings(NamedTuple):
    """The state at the end of a run, on the host; B images, K concepts. Fields as in `ManyState`.

    Attributes:
        margin: (B, K), how far each concept is above its thresholds.
        strengths: (B, L), empty where no token was moved.
    """

    margin: Tensor
    first_fired: Tensor
    is_high: Tensor
    left_out: Tensor
    image_peak: Tensor
    level: Tensor
    prompt: Tensor
    redirected: Tensor
    redirected_from: Tensor
    strengths: Tensor

    @classmethod
    def of(cls, state: ManyState, margin: Tensor) -> Readings:
        """Everything in one copy."""
        strengths = torch.zeros(0, device=state.level.device) if state.strengths is None else state.strengths
        return cls(
            *to_host(
                margin, state.first_fired, state.is_high, state.left_out, state.image_peak, state.level, state.prompt,
                state.redirected, state.redirected_from, strengths,
            )
        )  # fmt: skip

    @property
    def batch_size(self) -> int:
        return len(self.level)


def records_by_image(
    config: SafeRedirManyConfig,
    readings: Readings,
    image_thresholds: Sequence[float],
    *,
    num_steps: int,
    warned: str | None,
    weak_end: str | None,
) -> list[Decision]:
    """One record an image: of an unresolved concept, or the one furthest above its thresholds, and all that acted.

    Args:
        config: the guard's settings.
        readings: the state at the end of the run.
        image_thresholds: one a concept, of this run.
        num_steps: of the run.
        warned: why the run is outside of what was calibrated, or None.
        weak_end: why the last image verdict says little, or None.
    """
    records = []
    for row in range(readings.batch_size):
        steps = readings.first_fired[row].tolist()
        fired = [name for name, step in zip(config.concepts, steps, strict=True) if step >= 0]
        high = _named(config, readings.is_high[row])
        displaced = _named(config, readings.left_out[row])
        margin = readings.margin[row].tolist()
        among = [config.concepts.index(name) for name in high] or range(len(margin))
        first = min((step for step in steps if step >= 0), default=None)
        is_late = first is not None and first > LATE * num_steps
        records.append(
            _record(
                config,
                readings,
                image_thresholds,
                row,
                max(among, key=margin.__getitem__),
                first,
                concepts=tuple(fired),
                steps_redirected=int(readings.redirected[row]),
                unresolved=bool(high) or is_late or bool(displaced),
                unverified=weak_end is not None,
                message=_joined(
                    f"Redirected from {', '.join(fired)}." if fired else "",
                    _LATE if is_late else "",
                    _LEFT_OUT.format(", ".join(displaced)) if displaced else "",
                    _STILL_SHOWN.format(", ".join(high)) if high else "",
                    warned,
                    weak_end,
                ),
            )
        )
    return records


def records_by_concept(
    config: SafeRedirManyConfig,
    readings: Readings,
    image_thresholds: Sequence[float],
    *,
    names: Mapping[str, str],
    logged: Collection[str],
    num_steps: int,
    warned: Mapping[str, str | None],
    weak_end: Mapping[str, str | None],
) -> list[Decision]:
    """B records for each named concept; `unresolved` is also one that asked to act and that others left out of a step.

    A record says what is weak about its own concept, and nothing of the others'.

    Args:
        config, readings, image_thresholds, num_steps: as in `records_by_image`.
        names: concept -> name of its records.
        logged: of these concepts those that were scored and did not act.
        warned, weak_end: as in `records_by_image`, of each concept.
    """
    records = []
    for concept, name in names.items():
        number = config.concepts.index(concept)
        for row in range(readings.batch_size):
            step = int(readings.first_fired[row, number])
            first = step if step >= 0 else None
            is_late = first is not None and first > LATE * num_steps
            is_high, is_left_out = bool(readings.is_high[row, number]), bool(readings.left_out[row, number])
            record = _record(
                config,
                readings,
                image_thresholds,
                row,
                number,
                first,
                name=name,
                concepts=(concept,) if first is not None else (),
                steps_redirected=int(readings.redirected_from[row, number]),
                unresolved=is_high or is_late or is_left_out,
                unverified=weak_end[concept] is not None,
                message=_joined(
                    f"Redirected from {concept} from step {first}." if first is not None else "",
                    _LATE if is_late else "",
                    _LEFT_OUT.format(concept) if is_left_out else "",
                    _STILL_SHOWN.format(concept) if is_high else "",
                    warned[concept],
                    weak_end[concept],
                ),
            )
            records.append(logged_only(record) if concept in logged else record)
    return records


def _record(
    config: SafeRedirManyConfig,
    readings: Readings,
    image_thresholds: Sequence[float],
    row: int,
    number: int,
    first: int | None,
    **of_form: Any,
) -> Decision:
    """What both forms say alike, with the scores of concept `number`; `first` is the first step that was acted in."""
    has_fired, image, strengths = first is not None, float(readings.image_peak[row, number]), readings.strengths
    return Decision(
        guard=METHOD,
        concept=config.concepts[number],
        image=row,
        fired=has_fired,
        action="none" if not has_fired else "escalated" if int(readings.level[row]) else "redirected",
        prompt_score=float(readings.prompt[row, number]),
        image_score=image if image > -torch.inf else None,
        thresholds={"prompt": config.prompt_thresholds[number], "image": image_thresholds[number]},
        first_fired_step=first,
        token_strengths=tuple(strengths[row].tolist()) if has_fired and len(strengths) else None,
        **of_form,
    )


def _named(config: SafeRedirManyConfig, flags: Tensor) -> list[str]:
    return [name for name, flag in zip(config.concepts, flags.tolist(), strict=True) if flag]


def _joined(*parts: str | None) -> str:
    return " ".join(part for part in parts if part)
