"""A judge as a verifier of `saferedir.protect`: finished PIL images in, one bool each out, True where the concept is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from saferedir.errors import JudgeError
from saferedir.judges.base import Judge
from saferedir.judges.calibration import check_rule
from saferedir.judges.images import score_images
from saferedir.judges.presets import preset
from saferedir.judges.rules import Rule, deciding_facts, rule_from_dict, without_veto
from saferedir.utils.images import to_rgb


class JudgeVerifier:
    """Calls a judge on PIL images and applies a rule; give it to `saferedir.protect` as `verify`.

    The rule's veto ("not where the image is broken") is left out: it keeps an attack from winning with wrecked images, but
    an image that the judge labels with the concept must not be shown, however broken it looks.

    Attributes:
        judge: the judge.
        rule: what is asked of its scores, without veto.
    """

    def __init__(self, judge: Judge, rule: Rule) -> None:
        check_rule(judge, rule)
        self.judge, self.rule = judge, without_veto(rule)

    def __call__(self, images: Sequence[Image.Image]) -> list[bool]:
        """One bool an image; the images may differ in size."""
        pixels = [torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1).float() / 255 for image in images]
        flags: list[bool] = self.rule.decide(score_images(self.judge, pixels)).tolist()
        return flags

    def facts(self) -> dict[str, Any]:
        """Plain data that fix the verdicts, see `rules.deciding_facts`."""
        return deciding_facts(self.judge, self.rule)

    def __repr__(self) -> str:
        return f"JudgeVerifier({self.judge.name!r}, {self.rule})"


def verifier_of(judge: Judge, rule: Rule | Mapping[str, Any] | str) -> JudgeVerifier:
    """A judge and a rule as `verify` of `saferedir.protect`; the same as `judge.verifier(rule)`.

    Args:
        judge: any judge of `saferedir.judges.registry.load_judge`.
        rule: a rule, the same as plain data ({"kind": "InTop", "group": "shape", "value": "star"}), or the name of a preset.

    Raises:
        JudgeError: no such preset, one that is made for another judge or other options, or a rule that asks for labels
            that the judge does not have.
    """
    if isinstance(rule, str):
        chosen = preset(rule)
        if judge.name not in chosen.judges:
            raise JudgeError(
                f"preset {rule!r} is made for judge {' or '.join(chosen.judges)}, not for {judge.name!r}; give a rule."
            )
        chosen.check(judge.facts())
        return JudgeVerifier(judge, chosen.rule)
    if isinstance(rule, Mapping):
        return JudgeVerifier(judge, rule_from_dict(rule))
    if not isinstance(rule, Rule):
        raise JudgeError(f"rule is {rule!r}; expected a rule, a mapping such as Rule.to_dict, or the name of a preset.")
    return JudgeVerifier(judge, rule)


Judge.make_verifier = staticmethod(verifier_of)
