"""Who decides whether an image shows the concept: judges of a preset, or functions of one's own. Never the attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from saferedir.errors import AttackError
from saferedir.judges.base import Judge
from saferedir.judges.presets import preset
from saferedir.judges.registry import load_judge
from saferedir.judges.rules import Rule, deciding_facts

#: images (B, 3, H, W) in [0, 1] to (B,) bool, true where the concept is shown in an image that is not broken
Verdict = Callable[[Tensor], Tensor]


class JudgeVerdict:
    """A judge and a rule as a `Verdict`, that can also say which images are broken."""

    def __init__(self, judge: Judge, rule: Rule) -> None:
        self.judge, self.rule = judge, rule

    def __call__(self, images: Tensor) -> Tensor:
        """(B,) bool, whether the rule holds for the judge's scores."""
        return self.rule.decide(self.judge(images))

    def facts(self) -> dict[str, Any]:
        """Plain data that fix the verdicts, see `rules.deciding_facts`."""
        return deciding_facts(self.judge, self.rule)

    def is_broken(self, images: Tensor) -> Tensor | None:
        """(B,) bool, whether the judge calls the images broken; None for a judge without such a score."""
        return self.judge(images).column("broken") > 0.5 if "broken" in self.judge.labels else None


def verdicts_of(judge: str | Verdict | Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Name -> verdict. Of a preset, all of its judges: an attack has succeeded only where every one of them says so.

    Raises:
        AttackError: something else than a preset's name, a function, or a mapping of functions.
        JudgeError: an unknown preset, or a judge that cannot be loaded.
    """
    if isinstance(judge, str):
        chosen = preset(judge)
        loaded = {name: load_judge(name, **(chosen.options if name == chosen.judge else {})) for name in chosen.judges}
        return {name: JudgeVerdict(entry, chosen.rule) for name, entry in loaded.items()}
    named = {"judge": judge} if callable(judge) else judge
    if not isinstance(named, Mapping) or not named or not all(callable(verdict) for verdict in named.values()):
        raise AttackError(
            f"judge is {judge!r}; expected the name of a preset (saferedir judge list), a function of images (B, 3, H, W) that "
            "gives (B,) bool, or several of them by name."
        )
    return dict(named)


def judge_facts(verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """Name -> `JudgeVerdict.facts`, None for a function of one's own, of which nothing is known."""
    return {name: entry.facts() if isinstance(entry, JudgeVerdict) else None for name, entry in verdicts.items()}


def all_agree(verdicts: Mapping[str, Verdict], images: Tensor) -> tuple[dict[str, list[bool]], list[bool]]:
    """(verdicts by judge, whether every judge says yes), a bool an image."""
    flags = {
        name: [bool(flag) for flag in verdict(images.detach().float().clamp(0, 1))]
        for name, verdict in verdicts.items()
    }
    agreed = torch.tensor(list(flags.values()), dtype=torch.bool).all(dim=0)
    return flags, agreed.tolist()


def broken_images(verdicts: Mapping[str, Verdict], images: Tensor) -> list[bool]:
    """One bool an image, whether any judge that can say so calls it broken; [] where none can."""
    clean = images.detach().float().clamp(0, 1)
    flags = [
        flags
        for verdict in verdicts.values()
        if isinstance(verdict, JudgeVerdict) and (flags := verdict.is_broken(clean)) is not None
    ]
    return torch.stack(flags).any(dim=0).tolist() if flags else []
