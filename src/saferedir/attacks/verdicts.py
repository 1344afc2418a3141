"""Who decides whether an image shows the concept: judges of a preset, or functions of one's own. Never the attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from saferedir.errors import AttackError
from saferedir.judges.presets import preset
from saferedir.judges.registry import load_judge

#: images (B, 3, H, W) in [0, 1] to (B,) bool, true where the concept is shown in an image that is not broken
Verdict = Callable[[Tensor], Tensor]


def verdicts_of(judge: str | Verdict | Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Name -> verdict. Of a preset, all of its judges: an attack has succeeded only where every one of them says so.

    Raises:
        AttackError: something else than a preset's name, a function, or a mapping of functions.
        JudgeError: an unknown preset, or a judge that cannot be loaded.
    """
    if isinstance(judge, str):
        chosen = preset(judge)
        loaded = {name: load_judge(name, **(chosen.options if name == chosen.judge else {})) for name in chosen.judges}

        def verdict_of(name: str) -> Verdict:
            return lambda images: chosen.rule.decide(loaded[name](images))

        return {name: verdict_of(name) for name in loaded}
    named = {"judge": judge} if callable(judge) else judge
    if not isinstance(named, Mapping) or not named or not all(callable(verdict) for verdict in named.values()):
        raise AttackError(
            f"judge is {judge!r}; expected the name of a preset (saferedir judge list), a function of images (B, 3, H, W) that "
            "gives (B,) bool, or several of them by name."
        )
    return dict(named)


def all_agree(verdicts: Mapping[str, Verdict], images: Tensor) -> tuple[dict[str, list[bool]], list[bool]]:
    """(verdicts by judge, whether every judge says yes), a bool an image."""
    flags = {
        name: [bool(flag) for flag in verdict(images.detach().float().clamp(0, 1))]
        for name, verdict in verdicts.items()
    }
    agreed = torch.tensor(list(flags.values()), dtype=torch.bool).all(dim=0)
    return flags, agreed.tolist()
