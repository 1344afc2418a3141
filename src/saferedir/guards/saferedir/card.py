"""The model card of a trained guard: what it forgets, for which backbone, how it was trained and measured.

Saved beside the weights with every guard.
"""

from __future__ import annotations

from saferedir.guards.saferedir.config import SafeRedirConfig


def _table(values: dict[str, object]) -> str:
    rows = [f"| {name.replace('_', ' ')} | {value} |" for name, value in values.items() if not isinstance(value, dict)]
    return "| what | value |\n|---|---|\n" + "\n".join(rows)


def _last(config: SafeRedirConfig) -> str:
    return "" if config.last_threshold is None else f", last image score {config.last_threshold:.3f}"


def _calibration(config: SafeRedirConfig) -> str:
    """How the thresholds were chosen, and the verdict; nothing where unknown."""
    record = config.calibration
    if not record:
        return ""
    scales = ", ".join(f"{scale:g}" for scale in record["guidance_scales"])
    shares = record["contamination"]
    why = record.get("verdict", {}).get("why", "")
    return (
        f"Chosen on {record['benign']} benign and {record['unsafe']} unsafe roll-outs of {record['steps']} steps at guidance "
        f"{scales}; {shares[0]:.0%} of the first and {shares[1]:.0%} of the second may lie on the wrong side.\n\n{why}"
    )


def model_card(config: SafeRedirConfig) -> str:
    """The card as Markdown with the front matter that the Hugging Face hub reads."""
    backbone = config.backbone or {}
    family = backbone.get("architecture", {}).get("family", "any")
    by_time = config.measured.get("image_auroc_by_time", {})
    times = " ".join(f"t={t}: {v}" for t, v in by_time.items()) if isinstance(by_time, dict) else ""
    return f"""---
library_name: saferedir
license: apache-2.0
tags: [safety, unlearning, text-to-image]
---
# SafeRedir guard for "{config.concept}"

Steers prompts that ask for "{config.concept}" to the same wish without it while the model generates; prompts that do not
ask for it are left bit for bit as they were. Last resort: the embedding of "{config.training.get("anchor", "")}".
Load it with `saferedir.Guard.from_pretrained(folder)` and `saferedir.attach(pipe, guard)`.

Method: SafeRedir (arXiv:2601.08623), this project's `default` mode. Backbone: {family}.

## Thresholds
Prompt score {config.prompt_threshold:.3f}, image score {config.image_threshold:.3f}{_last(config)} (logits).
{_calibration(config)}

## Training
{_table(config.training)}

## Held-out measurements
Thresholds and the best checkpoint were chosen on the same held-out pairs, so these rates are optimistic; the independent
ones are in the project's documentation.

{_table(config.measured)}

AUROC of the image verdict by time: {times}

## Limits
Trained on one backbone, sampler setting and set of phrasings; recalibrate for others
(`saferedir guards calibrate`). It is no defence against somebody who
can edit weights or remove the guard.
"""
