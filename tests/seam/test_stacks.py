"""docs/stacks.md is true: its code runs, guards act in the order it says, and the refusals read as it prints them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import make_pipeline
from torch import Tensor

import saferedir as sr
from saferedir.errors import AlreadyAttachedError, GuardError
from saferedir.guard import Guard, GuardConfig, Step
from saferedir.guards.dual_latent import DualLatentR2, DualLatentR2Config
from saferedir.guards.negation import NegationSet
from saferedir.guards.negative_prompt import NegativePrompt, NegativePromptConfig
from saferedir.guards.safe_denoiser import SafeDenoiser
from saferedir.guards.sld import SLD, SLDConfig
from saferedir.guards.spell import SPELL

PAGE = (Path(__file__).parents[2] / "docs" / "stacks.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
POINTS = ("on_prompt", "on_step_start", "on_prediction", "on_denoised", "on_step_end")


class Adds(Guard[GuardConfig]):
    """Adds its number at every point and notes what it was given there."""

    method = "adds"
    config_class = GuardConfig

    def __init__(self, number: float, log: list[tuple[str, float]]) -> None:
        super().__init__(GuardConfig(concept="any"))
        self.number, self.log = number, log

    def _acts(self, point: str, value: Tensor) -> Tensor:
        self.log.append((point, self.number))
        return value + self.number

    def on_prompt(self, step: Step) -> Tensor:
        return self._acts("on_prompt", step.prompt_embeds)

    def on_step_start(self, step: Step) -> Tensor:
        return self._acts("on_step_start", step.prompt_embeds)

    def on_prediction(self, step: Step) -> Tensor:
        assert step.pred is not None
        return self._acts("on_prediction", step.pred)

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        return self._acts("on_denoised", x0)

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        return self._acts("on_step_end", latents)


@pytest.mark.parametrize("code", CODE, ids=["saferedir and safe denoiser", "duo and saferedir"])
def test_its_code_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "docs/stacks.md", "exec"), {})
    assert "saferedir" in capsys.readouterr().out


def test_guards_act_point_by_point_in_the_order_given_and_attached() -> None:
    pipe, log = make_pipeline(), []
    first, second, later = (Adds(number, log) for number in (0.01, 0.02, 0.03))
    with sr.attach(pipe, [first, second]), sr.attach(pipe, later):
        pipe("a prompt", num_inference_steps=2, output_type="latent")
    numbers = (0.01, 0.02, 0.03)
    once = [(point, number) for point in POINTS for number in numbers]
    assert log == once + once[len(numbers) :]  # on_prompt is asked once a run


def test_the_second_is_given_what_the_first_left() -> None:
    given: dict[str, list[float]] = {}

    class Notes(Adds):
        def _acts(self, point: str, value: Tensor) -> Tensor:
            given.setdefault(point, []).append(float(value.double().mean()))
            return super()._acts(point, value)

    with sr.attach(make_pipeline(), [Notes(0.01, []), Notes(0.02, [])]) as attached:
        attached._seam.pipe("a prompt", num_inference_steps=1, output_type="latent")
    for point in POINTS:
        first, second = given[point]
        assert second - first == pytest.approx(0.01, abs=1e-5), point
    assert given["on_step_start"][0] - given["on_prompt"][0] == pytest.approx(0.03, abs=1e-5)


def test_the_refusals_read_as_printed() -> None:
    pipe = make_pipeline()
    sld = SLD(SLDConfig(concept="a star", phrases=("star",)))
    negative = NegativePrompt(NegativePromptConfig(concept="a star", phrases=("star",)))
    negation = NegationSet.from_latents(torch.randn(4, 4, 8, 8))
    spell = SPELL.from_set(negation, concept="a star", backbone=None)
    merging = DualLatentR2(DualLatentR2Config(concept="a star"))
    renoising = SafeDenoiser.from_set(negation, concept="a star", backbone=None, renoise="stale")
    with sr.attach(pipe, spell):
        found = [refusal(GuardError, lambda: sr.attach(pipe, [sld, negative]))]
        found.append(refusal(GuardError, lambda: sr.attach(pipe, [merging, renoising])))
        found.append(refusal(AlreadyAttachedError, lambda: sr.attach(pipe, spell)))
        other = type(pipe)(**pipe.components)
        found.append(refusal(AlreadyAttachedError, lambda: sr.attach(other, sld)))
    with sr.protect(pipe, spell) as guarded:
        found.append(refusal(GuardError, lambda: sr.attach(guarded, sld)))
    for sentence in found:
        assert sentence in PAGE


def refusal(kind: type[Exception], attach: Any) -> str:
    with pytest.raises(kind) as raised:
        attach()
    return str(raised.value)
