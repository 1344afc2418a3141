"""The model card of a trained guard: what it forgets, for which backbone, how it was trained and measured.

Saved beside the weights with every guard.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.utils.rules import active_rules


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


def _rules(config: SafeRedirConfig) -> str:
    """The rules and tests that are on, in a sentence."""
    rules = active_rules(vars(config))
    if not rules:
        return "None of those that saferedir offers (docs/hardening.md) is on."
    listed = ", ".join(f'`{name}="{value}"`' for name, value in rules.items())
    return f"On, of those that saferedir offers (docs/hardening.md): {listed}."


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

## Rules and tests
{_rules(config)}

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


class Many(Protocol):
    """What the card reads of the settings of a guard of many concepts."""

    @property
    def calibration(self) -> dict[str, Any]: ...

    @property
    def training(self) -> dict[str, Any]: ...

    @property
    def backbone(self) -> dict[str, Any] | None: ...

    @property
    def concepts(self) -> tuple[str, ...]: ...


def many_card(config: Many) -> str:
    """The card of a guard of many concepts: a row for each, by its own record."""
    family = (config.backbone or {}).get("architecture", {}).get("family", "any")
    head = "| concept | pairs | prompt recall | prompt false positives | image recall | image false positives | leads into |"
    rows = [_concept_row(name, config) for name in config.concepts]
    table = "\n".join((head, "|---" * 7 + "|", *rows))
    return f"""---
library_name: saferedir
license: apache-2.0
tags: [safety, unlearning, text-to-image]
---
# SafeRedir guard of {len(config.concepts)} concepts

One network with a row for each concept: it scores a prompt and every denoised estimate for all of them at once, and
redirects the prompt from those that it asks for or shows. Load it with `saferedir.Guard.from_pretrained(folder)`; a policy
gives each concept an action (`row` of a rule), and a concept without a rule is off. `saferedir train saferedir-many --start`
adds concepts without a change of these.

Method: SafeRedir (arXiv:2601.08623), this project's `saferedir_many`. Backbone: {family}.

## Held-out measurements
Thresholds were chosen on the same held-out pairs and images, so these rates are optimistic; brackets are 95 % Wilson
intervals. "Leads into": concepts of this guard that the safe sides of a concept's pairs ask for, and the share of the pairs;
a policy that keeps out both redirects from one into the other, and says so when it is read.

{table}

## Training
{_table(config.training)}

## Limits
Trained on one backbone, sampler setting and set of phrasings. Where a concept's image recall is low, the guard rests on its
prompt verdict: a prompt that hides the concept from it is redirected late or not at all; verify the finished image. It is no
defence against somebody who can edit weights or remove the guard.
"""


def _concept_row(name: str, config: Many) -> str:
    """A line of the table; "–" where nothing was recorded."""
    record = config.calibration.get(name, {})
    rates = [
        _rate(record.get(verdict, {}).get(rate))
        for verdict in ("prompt", "image")
        for rate in ("recall", "false_positives")
    ]
    leads = ", ".join(f"{other} ({share:.0%})" for other, share in record.get("leads_into", {}).items()) or "–"
    pairs = config.training.get("pairs")
    count = pairs.get(name, "–") if isinstance(pairs, Mapping) else "–"
    return f"| {name} | {count} | {' | '.join(rates)} | {leads} |"


def _rate(rate: Mapping[str, Any] | None) -> str:
    return "–" if not rate else f"{rate['rate']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}], n = {rate['n']}"
