"""What a guard's own record says of it: good or weak and why, and where a run leaves what was calibrated.

The trainer ends with `verdict`, `attach` warns of `weaknesses`, a run of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.step import Run

#: a side that finds fewer of the unsafe images, or prompts, than this is weak
LEAST_RECALL = 0.9
#: a last image verdict that finds fewer than this confirms nothing
LEAST_LAST_RECALL = 0.95
#: below, a redirection by the image verdict always begins late (`state.LATE`), and nothing was calibrated on what comes of it
LEAST_STEPS = 4
#: a side that disturbs more of the benign ones than this is weak
MOST_FALSE_POSITIVES = 0.03
#: held-out images of a side below which a weak image side is no reason to keep a guard back
LEAST_IMAGES = 20
#: weak concepts that one warning names
MOST_NAMED = 3
RECALIBRATE = "`saferedir guards calibrate`"
_WHAT = {"prompt": ("prompts that ask for it", "others"), "image": ("images that show it", "others")}


def weaknesses(config: SafeRedirConfig) -> list[str]:
    """One clause for each side that cannot tell the concept from the rest, by what was measured on held-out data."""
    sentences = []
    for side, (unsafe, benign) in _WHAT.items():
        if not getattr(config, f"use_{side}") or config.mode != "default":
            continue
        recall, alarms = (config.measured.get(f"{side}_{name}") for name in ("recall", "false_positive_rate"))
        if _is_share(recall) and recall < LEAST_RECALL:
            sentences.append(f"the {side} verdict misses {1 - recall:.0%} of the {unsafe}")
        if _is_share(alarms) and alarms > MOST_FALSE_POSITIVES:
            sentences.append(f"the {side} verdict takes {alarms:.0%} of the {benign} for the concept")
    return sentences


def blind_image_side(config: SafeRedirConfig) -> str | None:
    """A clause where the image verdict surely cannot tell the concept from the rest; None where it can, or too little is known.

    Sure is what the whole 95 % interval says, of at least `LEAST_IMAGES` held-out images of a side.
    """
    if not config.use_image or config.mode != "default":
        return None
    rates = config.calibration.get("image", {})
    recall, alarms = rates.get("recall"), rates.get("false_positives")
    if recall and recall["n"] >= LEAST_IMAGES and recall["high"] < LEAST_RECALL:
        return f"the image verdict finds {_percent(recall)} of the images that show it"
    if alarms and alarms["n"] >= LEAST_IMAGES and alarms["low"] > MOST_FALSE_POSITIVES:
        return f"the image verdict takes {_percent(alarms)} of the others for the concept"
    return None


def verdict(config: SafeRedirConfig) -> dict[str, Any]:
    """{"good": bool, "why": one sentence}: the trainer's last word, for a person."""
    weak = weaknesses(config)
    if weak:
        return {"good": False, "why": f"Weak: on held-out data {' and '.join(weak)}."}
    sides = []
    for side, (unsafe, benign) in _WHAT.items():
        rates = config.calibration.get(side, {})
        recall, alarms = (_percent(rates.get(name)) for name in ("recall", "false_positives"))
        sides.append(f"the {side} verdict finds {recall} of the {unsafe} and disturbs {alarms} of the {benign}")
    return {"good": True, "why": f"Good: on held-out data {', '.join(sides)}."}


def warning_text(config: SafeRedirConfig) -> str | None:
    """What `attach` warns of, or None."""
    weak = weaknesses(config)
    if not weak:
        return None
    return (
        f"guard 'saferedir' for {config.concept!r} is weak: by its own record {' and '.join(weak)}; recalibrate its thresholds "
        f"({RECALIBRATE}), train it on more pairs, or use protect with a verifier."
    )


def weak_rows_text(title: str, rows: Sequence[SafeRedirConfig]) -> str | None:
    """What `attach` warns of where rows of a guard of many concepts are weak, the weakest by name; None where none is.

    Args:
        rows: each concept's settings as a guard of its own.
    """
    weak = sorted((config for config in rows if weaknesses(config)), key=_lowest_recall)
    if not weak:
        return None
    named = ", ".join(f"{config.concept} ({' and '.join(weaknesses(config))})" for config in weak[:MOST_NAMED])
    which = ":" if len(weak) <= MOST_NAMED else ", such as"
    return (
        f"{len(weak)} of {len(rows)} concepts are weak in {title} by its own record{which} {named}; train them on more pairs "
        "and roll-outs, or use protect with a verifier."
    )


def _lowest_recall(config: SafeRedirConfig) -> float:
    recalls = (config.measured.get(f"{side}_recall") for side in _WHAT if getattr(config, f"use_{side}"))
    return min((recall for recall in recalls if _is_share(recall)), default=1.0)


def outside_calibration(config: SafeRedirConfig, run: Run) -> str | None:
    """A sentence where the run's guidance scale was never calibrated; None where it was, or nothing is known."""
    scales = guidance_scales(config)
    if not scales or run.guidance_scale is None or not config.use_image or config.mode != "default":
        return None
    scale = max(1.0, run.guidance_scale)  # from 1 down there is no guidance
    lowest, highest = min(scales), max(scales)
    if max(1.0, lowest) - 1e-6 <= scale <= highest + 1e-6:
        return None
    known = f"{lowest:g}" if lowest == highest else f"{lowest:g} to {highest:g}"
    return (
        f"Guidance scale {run.guidance_scale:g} lies outside of what the thresholds for {config.concept!r} were calibrated on "
        f"({known}), so benign images may be changed and the concept may be missed; calibrate the guard there ({RECALIBRATE})."
    )


def image_threshold(trained: float, last: float | None, steps: int) -> float:
    """From which score (logit) of an estimate on the image verdict acts in a run of so many steps.

    The trained threshold bounds the highest score of a long run, `last` that of a single estimate in a run that is only judged.
    Where fewer than `LEAST_STEPS` steps are taken, each estimate is held against the mean of both, if it is lower: at `last` more
    benign images would be changed than may be (docs/few-steps.md).
    """
    if last is None or steps >= LEAST_STEPS:
        return trained
    return min(trained, (trained + last) / 2)


def weak_at(config: SafeRedirConfig, steps: int) -> str | None:
    """A sentence where the last image verdict of a run of so many steps says little, None where it can be relied on."""
    if not config.use_image or config.mode != "default":
        return None
    recalls = {int(count): rates["recall"]["rate"] for count, rates in config.calibration.get("by_steps", {}).items()}
    if recalls and steps < LEAST_STEPS:
        return (
            f"In a run of fewer than {LEAST_STEPS} steps the image verdict for {config.concept!r} comes too late to be "
            "taken again, so nothing checks the redirected image."
        )
    recall, least, known = None, LEAST_RECALL, [count for count in recalls if count <= steps]
    if known:
        recall, least = recalls[max(known)], LEAST_LAST_RECALL
    elif recalls or steps * 4 < config.training.get("rollout_steps", 0):
        return (
            f"The image verdict for {config.concept!r} was never measured in runs of so few steps ({steps}), so it cannot tell "
            "whether the concept is still there."
        )
    else:
        recall = config.measured.get("image_recall")
    if not _is_share(recall) or recall >= least:
        return None
    return (
        f"The last image verdict for {config.concept!r} in a run of {steps} steps finds {recall:.0%} of the images that show it "
        "by the guard's own record, so it cannot tell whether the concept is still there."
    )


def weak_verdict(config: SafeRedirConfig) -> dict[str, float]:
    """Concept -> highest recall of the last image verdict, in runs of any length, where it is too low in all; {} otherwise."""
    recalls = {int(count): rates["recall"]["rate"] for count, rates in config.calibration.get("by_steps", {}).items()}
    longest = max(config.training.get("rollout_steps", 0), LEAST_STEPS)
    if not all(weak_at(config, max(count, LEAST_STEPS)) for count in recalls or [longest]):
        return {}
    return {config.concept: max(recalls.values(), default=config.measured.get("image_recall", 0.0))}


def guidance_scales(config: SafeRedirConfig) -> list[float]:
    """Scales that the thresholds were calibrated on and hold at; an older guard's is that of its training."""
    recorded = config.calibration.get("guidance_scales")
    if recorded is None:
        recorded = [config.training.get("guidance_scale")]
    rates = config.calibration.get("by_guidance", {})
    alarms = {
        float(scale): rates.get(f"{scale:g}", {}).get("false_positives", {}).get("rate", 0.0)
        for scale in recorded
        if isinstance(scale, int | float)
    }
    return [scale for scale, rate in alarms.items() if rate <= MOST_FALSE_POSITIVES]


def _is_share(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and 0 <= value <= 1


def _percent(rate: Mapping[str, Any] | None) -> str:
    """ "98 % (95 to 99, n = 208)" """
    if not rate:
        return "an unknown share"
    return f"{100 * rate['rate']:.0f} % ({100 * rate['low']:.0f} to {100 * rate['high']:.0f}, n = {rate['n']})"
