"""Prompts that are written to in place in the middle of a run: guards are given what the denoiser is, or no image leaves."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.newer_pipelines import NEWER
from tests.tiny_pipelines import PIPELINES, run
from torch import Tensor

import saferedir as sr
from saferedir.guard import Conditioning, Guard, GuardConfig, Step
from saferedir.pipelines.families import FAMILIES
from saferedir.pipelines.joined import Joined
from saferedir.pipelines.listed import Layers, Lists
from saferedir.utils.device import Collecting, Pending, rehearsal

#: what a denoiser is given (some keyword arguments), and what guards are then
Given = tuple[dict[str, Any], Callable[[], dict[str, Any]]]


def joined(name: str, **kwargs: Tensor) -> Given:
    family = FAMILIES[name]
    pipe = type("Pipe", (), {"tokenizer_2_max_length": 3})()
    form = Joined(family, pipe)
    return kwargs, lambda: dict(form.flat(kwargs))


def hidream() -> Given:
    parts = {
        "encoder_hidden_states_t5": torch.rand(2, 5, 4),
        "encoder_hidden_states_llama3": torch.rand(3, 2, 5, 4),
    }
    return joined("hidream", **parts)


def hunyuan_dit() -> Given:
    return joined(
        "hunyuan-dit", encoder_hidden_states=torch.rand(2, 5, 6), encoder_hidden_states_t5=torch.rand(2, 3, 4)
    )


def hunyuan_image() -> Given:
    masks = {"encoder_attention_mask": torch.ones(2, 5), "encoder_attention_mask_2": torch.ones(2, 3)}
    parts = {"encoder_hidden_states": torch.rand(2, 5, 6), "encoder_hidden_states_2": torch.rand(2, 3, 4)}
    return joined("hunyuan-image", **parts, **masks)


def z_image() -> Given:
    form = Lists(FAMILIES["z-image"])
    given = {"x": [torch.rand(4, 1, 8, 8)] * 2, "t": torch.rand(2), "cap_feats": [torch.rand(5, 4), torch.rand(3, 4)]}
    return given, lambda: form.tensors((), given)


def krea2() -> Given:
    """Of states that do not lie one beside the other, so that they are copied."""
    form = Layers(FAMILIES["krea-2"])
    given = {"encoder_hidden_states": torch.rand(2, 5, 4, 3).transpose(2, 3)}
    return given, lambda: dict(form.flat(given))


FORMS = {
    "hidream": hidream,
    "hunyuan-dit": hunyuan_dit,
    "hunyuan-image": hunyuan_image,
    "z-image": z_image,
    "krea-2": krea2,
}


def tensors_of(given: dict[str, Any]) -> list[Tensor]:
    """The tensors of the prompt."""
    prompts = [value for name, value in given.items() if name.startswith(("encoder_", "cap_"))]
    return [each for value in prompts for each in (value if isinstance(value, list) else [value])]


def shown(flat: dict[str, Any], name: str) -> list[Tensor]:
    """What guards are given of the prompt, in the place of what the denoiser is."""
    family = FAMILIES[name]
    mask = None if family.listed else family.mask_kwarg
    return [flat[key] for key in (family.prompt_arg[1], mask) if key in flat]


def sum_of(tensors: list[Tensor]) -> float:
    return float(sum(each.double().sum() for each in tensors))


@contextmanager
def on_a_device(pending: Pending) -> Iterator[None]:
    with rehearsal(), Collecting(pending):
        yield


@pytest.mark.parametrize("is_on_device", [False, True], ids=["cpu", "device"])
@pytest.mark.parametrize("name", FORMS)
def test_guards_are_given_what_was_written(name: str, is_on_device: bool) -> None:
    given, flat = FORMS[name]()
    pending = Pending(is_eager=not is_on_device)
    with on_a_device(pending):
        before = shown(flat(), name)
        assert all(new is old for new, old in zip(shown(flat(), name), before, strict=True))
        for tensor in tensors_of(given):
            old = shown(flat(), name)
            tensor.add_(1)
            new = shown(flat(), name)
            assert any(one is not other for one, other in zip(new, old, strict=True))
            assert all(one is other for one, other in zip(shown(flat(), name), new, strict=True))
            assert sum_of(new) == pytest.approx(sum_of(tensors_of(given)))
        pending.settle()


@pytest.mark.parametrize("is_inference", [False, True], ids=["data", "inference"])
@pytest.mark.parametrize("name", FORMS)
def test_a_write_that_no_count_shows_is_read_at_once_or_refused_at_the_end(name: str, is_inference: bool) -> None:
    with torch.inference_mode(is_inference):
        given, flat = FORMS[name]()
        *_, tensor = tensors_of(given)
        pending = Pending()
        with on_a_device(pending):
            flat()
            flat()
            pending.settle()
            (tensor if is_inference else tensor.data).add_(1)
            flat()
            with pytest.raises(sr.GuardError, match="written to in the middle of a run"):
                pending.settle()
        old = shown(flat(), name)  # on the CPU
        (tensor if is_inference else tensor.data).add_(1)
        assert any(one is not other for one, other in zip(shown(flat(), name), old, strict=True))


def test_a_mask_that_is_changed_later_hides_no_first_token() -> None:
    given, flat = hunyuan_image()
    flat()
    given["encoder_attention_mask"][:, 0] = 0
    with pytest.raises(sr.GuardError, match="hides its first token"):
        flat()


class Judge(Guard[GuardConfig]):
    """Judges prompts by `on_prompt`, which is asked once for a prompt, and lets them pass."""

    method = "judge"

    def __init__(self) -> None:
        super().__init__(GuardConfig(concept="star"))
        self.judged: list[float] = []
        self.prompts: list[weakref.ref[Tensor]] = []

    def on_prompt(self, step: Step) -> Conditioning:
        self.judged.append(float(step.prompt_embeds.abs().sum()))
        self.prompts.append(weakref.ref(step.prompt_embeds))
        return step.conditioning


def tripled(name: str) -> Callable[..., dict[str, Any]]:
    def callback(pipe: Any, index: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        values[name].mul_(3)
        return {}

    return callback


@pytest.mark.parametrize(("name", "argument"), [("sd", "prompt_embeds"), ("hidream", "prompt_embeds_t5")])
def test_the_prompt_is_judged_again_after_every_write_and_let_go_at_the_end(name: str, argument: str) -> None:
    case = {**PIPELINES, **NEWER}[name]
    pipe, judge = case.build(), Judge()
    settings = {"callback_on_step_end": tripled(argument), "callback_on_step_end_tensor_inputs": ["latents", argument]}
    with sr.attach(pipe, judge):
        run(case, pipe, "a star", steps=3, **settings)
        assert len(judge.judged) == 3 and judge.judged[0] < judge.judged[1] < judge.judged[2]
        assert all(prompt() is None for prompt in judge.prompts)
        judge.judged.clear()
        run(case, pipe, "a star", steps=3)
        assert len(judge.judged) == 1
