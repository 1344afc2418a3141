"""`embeds_test`: whatever embeddings a caller hands over are tested, and no text ever is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.attacks.planted import BENIGN_IMAGE, CALL, make_planted
from tests.guards.saferedir.test_backbones import CASES, WORDS, never, pipeline, redirector
from tests.tiny_pipelines import run
from torch import Tensor

from saferedir import GuardConfigError, GuardError, attach
from saferedir.guards.saferedir import SafeRedir
from saferedir.guards.saferedir.embeds_test import require_known_halves
from saferedir.guards.saferedir.manifold import PromptManifold
from saferedir.target import Target
from saferedir.training.saferedir.manifold import measure_manifold
from saferedir.utils.device import rehearsal

FAMILIES = ["sd", "sdxl"]
NEGATIVES = ["", "x", "a b", "c d e f"]
PARTS = {
    "prompt": "prompt_embeds", "negative prompt": "negative_prompt_embeds",
    "pooled prompt": "pooled_prompt_embeds", "pooled negative prompt": "negative_pooled_prompt_embeds",
}  # fmt: skip


@cache
def manifold(family: str) -> PromptManifold:
    return measure_manifold(pipeline(family), [*WORDS, *(f"{a} {b}" for a in WORDS for b in WORDS[:9])])


def strict(family: str, **changes: Any) -> SafeRedir:
    """A guard that is silent on everything but embeddings that no text makes."""
    guard = never(redirector(family), embeds_test="refuse", **changes)
    guard.manifold = manifold(family)
    return guard


def texts_only(family: str) -> SafeRedir:
    return strict(family).with_settings(embeds_test="texts")


def refusing_all(family: str) -> SafeRedir:
    """Everything that is tested at all is refused."""
    guard, statistics = strict(family), manifold(family)
    bound = torch.tensor(1e-9)
    pooled = None if statistics.pooled is None else replace(statistics.pooled, bound=bound)
    guard.manifold = replace(statistics, bound=bound, pooled=pooled)
    return guard


def encoded(family: str, negatives: list[str] | None, count: int = 1) -> dict[str, Tensor]:
    """What `encode_prompt` of the pipeline makes, as arguments of its call."""
    texts = [f"{word} k" for word in WORDS[:count]]
    answer = pipeline(family).encode_prompt(
        texts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=negatives
    )
    return {name: value.detach() for name, value in zip(PARTS.values(), answer, strict=False)}


def images(family: str, prompt: Any, steps: int = 1, **how: Any) -> Tensor:
    answer = run(CASES[family], pipeline(family), prompt, steps=steps, **{**CASES[family].guidance, **how})
    return answer if isinstance(answer, Tensor) else torch.as_tensor(answer.images)


@pytest.mark.parametrize(("family", "guard_of"), [("sd", refusing_all), ("sdxl", refusing_all), ("sdxl", texts_only)])
def test_texts_are_never_tested_whatever_the_bound(family: str, guard_of: Callable[[str], SafeRedir]) -> None:
    """Negative prompts left out, which SDXL has zeros for; of their own for the second encoder; several images a prompt."""
    second: dict[str, Any] = {"negative_prompt_2": ["d"] * 2} if family == "sdxl" else {}
    for how in (
        {},
        {"negative_prompt": ["x", "a b"]},
        {"negative_prompt": ["x", ""], **second, "num_images_per_prompt": 2},
    ):
        bare = images(family, ["a", "b"], **how)
        with attach(pipeline(family), guard_of(family)):
            assert torch.equal(images(family, ["a", "b"], **how), bare)
    with attach(pipeline(family), guard_of(family)):
        given = encoded(family, ["x"])  # while the guard is attached: known to be of a text
        images(family, None, **given)
        for name in set(given) - {"prompt_embeds"}:
            with pytest.raises(
                GuardError, match="negative prompt emb|pooled negative" if "negative" in name else "prompt emb"
            ):
                images(family, None, **given | {name: given[name] + 1e-3})


@pytest.mark.parametrize("family", FAMILIES)
def test_negatives_that_were_encoded_before_pass_bit_for_bit(family: str) -> None:
    for negative in ([text] for text in NEGATIVES):
        given = encoded(family, negative)
        negatives = {name: value for name, value in given.items() if "negative" in name}
        bare, beside_text = images(family, None, **given), images(family, ["a"], **negatives)
        with attach(pipeline(family), strict(family)):
            assert torch.equal(images(family, None, **given), bare)
            assert torch.equal(images(family, ["a"], **negatives), beside_text)
    given = encoded(family, None)  # SDXL: zeros
    bare = images(family, None, **given)
    assert (family == "sdxl") == (not bool(given["negative_prompt_embeds"].any()))
    with attach(pipeline(family), strict(family)):
        assert torch.equal(images(family, None, **given), bare)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_device", [False, True])
def test_what_no_text_makes_is_refused_row_by_row(family: str, is_device: bool) -> None:
    """Of each part alone; read at once, and at the end of a run on a device."""
    given = encoded(family, ["x", "a b"], count=2)
    generator = torch.Generator().manual_seed(0)
    for kind, name in PARTS.items():
        if name not in given:
            continue
        moved = given[name].clone()
        moved[1] += 3 * moved.std() * torch.randn(moved[1].shape, generator=generator)
        with attach(pipeline(family), strict(family)) as attached:
            words = (
                f"the {kind} embeddings given for image 1 are none .* give the {kind.removeprefix('pooled ')} as text"
            )
            calls: list[Any] = []
            handle = pipeline(family).unet.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            with pytest.raises(GuardError, match=words), rehearsal() if is_device else nullcontext():
                images(family, None, **given | {name: moved})
            handle.remove()
            assert len(calls) == is_device  # on a device nothing waited for the test
            assert not attached.decisions
            images(family, None, **given)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_alone_pass_where_that_is_asked_for(family: str) -> None:
    """What was encoded before the guard was attached is not known; zeros in place of no negative prompt are."""
    given, none = encoded(family, ["x"]), encoded(family, None)
    negatives = {name: value for name, value in given.items() if "negative" in name}
    with attach(pipeline(family), texts_only(family).with_settings(gate="hard")):
        for row, known in ((given, "the prompt embeddings"), (negatives, "the negative prompt embeddings")):
            prompt = None if row is given else ["a"]
            with pytest.raises(GuardError, match=f"{known} given for image 0 are not known to be of a text"):
                images(family, prompt, **row)
        if family == "sdxl":
            images(family, ["a"], **{name: value for name, value in none.items() if "negative" in name})
    call = {**CASES[family].settings, **CASES[family].guidance, "num_inference_steps": 2}
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with Target(pipeline(family), [texts_only(family)], call) as target:
        gates = target.predict(latents, 0, prompt=["a"], **negatives).gates
        assert float(gates["saferedir.negative_embeds"].margin) == 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_an_attack_gets_the_distance_of_both_halves(family: str) -> None:
    given = encoded(family, ["x"])
    negative = given["negative_prompt_embeds"]
    move = (
        2 * negative.std() * torch.randn(negative.shape, generator=torch.Generator().manual_seed(0))
    ).requires_grad_()
    case = CASES[family]
    call = {**case.settings, **case.guidance, "num_inference_steps": 2}
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with Target(pipeline(family), [strict(family)], call) as target:
        prediction = target.predict(latents, 0, **given | {"negative_prompt_embeds": negative + move})
        own, other = (prediction.gates[f"saferedir.{name}"].margin for name in ("embeds", "negative_embeds"))
        assert float(own.detach()) < 0 < float(other.detach())
        (slope,) = torch.autograd.grad(other.sum(), move)
        assert bool(slope.isfinite().all()) and float(slope.abs().sum()) > 0
        if "negative_pooled_prompt_embeds" in given:
            pooled = (given["negative_pooled_prompt_embeds"] + 3).requires_grad_()
            prediction = target.predict(latents, 0, **given | {"negative_pooled_prompt_embeds": pooled})
            (slope,) = torch.autograd.grad(prediction.gates["saferedir.negative_embeds"].margin.sum(), pooled)
            assert float(slope.abs().sum()) > 0
        by_text = target.predict(latents, 0, prompt=["a"])
        assert float(by_text.gates["saferedir.negative_embeds"].margin) == -1.0


def test_a_negative_passes_up_to_the_bound_and_no_further() -> None:
    """On the way from a text's to noise; an attack that knows the distance ends just below it."""
    own = encoded("sd", ["x"])["negative_prompt_embeds"]
    noise = own + 3 * own.std() * torch.randn(own.shape, generator=torch.Generator().manual_seed(0))
    low, high = 0.0, 1.0
    for _ in range(20):
        share = (low + high) / 2
        is_inside = bool(manifold("sd").distance(torch.lerp(own, noise, share)) <= manifold("sd").bound)
        low, high = (share, high) if is_inside else (low, share)
    assert 0 < low < high < 1
    with attach(pipeline("sd"), strict("sd")):
        images("sd", ["a"], negative_prompt_embeds=torch.lerp(own, noise, low))
        with pytest.raises(GuardError, match="the negative prompt embeddings given for image 0"):
            images("sd", ["a"], negative_prompt_embeds=torch.lerp(own, noise, high))
        with pytest.raises(GuardError, match="the negative prompt embeddings given for image 0"):
            images("sd", ["a"], negative_prompt_embeds=torch.full_like(own, torch.nan))
        images("sd", ["a"], negative_prompt_embeds=torch.zeros_like(own))  # what some pipelines have for no text


def test_negatives_that_are_changed_in_the_middle_are_tested() -> None:
    def change(pipe: Any, index: int, t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        values["prompt_embeds"][0] += 5  # the unconditional half
        return values

    how: dict[str, Any] = {
        "callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }  # fmt: skip
    given = encoded("sd", ["x"])
    with attach(pipeline("sd"), strict("sd")), pytest.raises(GuardError, match="the negative prompt embeddings"):
        images("sd", None, 2, **given, **how)


@pytest.mark.parametrize("guard_of", [strict, texts_only])
@pytest.mark.parametrize("half", [0, 1])
def test_an_answer_of_encode_prompt_that_is_written_into_is_no_text(
    guard_of: Callable[[str], SafeRedir], half: int
) -> None:
    with attach(pipeline("sd"), guard_of("sd").with_settings(gate="hard")):
        given = encoded("sd", ["x"])  # while the guard is attached, and without a copy
        images("sd", None, **given)
        name = ("prompt_embeds", "negative_prompt_embeds")[half]
        given[name] += 5
        with pytest.raises(GuardError, match=("the prompt", "the negative prompt")[half]):
            images("sd", None, **given)


def test_a_prompt_that_a_callback_writes_into_is_no_text() -> None:
    """Without guidance the pipeline goes on with the very tensor that encode_prompt answered."""

    def change(pipe: Any, index: int, t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        values["prompt_embeds"] += 5
        return values

    how: dict[str, Any] = {
        "guidance_scale": 1.0,
        "callback_on_step_end": change,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    with attach(pipeline("sd"), strict("sd")), pytest.raises(GuardError, match="the prompt embeddings"):
        images("sd", ["a"], 2, **how)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_text_encoders_all_embeddings_are_the_callers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, given = pipeline(family), encoded(family, ["x"])
    bare, guard, other = images(family, None, **given), strict(family), texts_only(family)
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        if hasattr(pipe, name):
            monkeypatch.setattr(pipe, name, None)
    with attach(pipe, guard):
        assert torch.equal(images(family, None, **given), bare)
        with pytest.raises(GuardError, match="the prompt embeddings"):
            images(family, None, **given | {"prompt_embeds": given["prompt_embeds"] + 5})
    with pytest.raises(GuardError, match="has to know the texts"):
        attach(pipe, other)


@pytest.mark.parametrize("family", ["flux", "hidream", "hunyuan-image", "z-image"])
def test_texts_alone_needs_a_family_whose_negatives_are_recorded(family: str) -> None:
    config = strict("sd").with_settings(embeds_test="texts", gate="hard").config
    with pytest.raises(GuardError, match="which negative prompts a text made"):
        require_known_halves(config, SimpleNamespace(family=family))  # type: ignore[arg-type]


def test_statistics_without_pooled_ones_refuse_what_they_cannot_test() -> None:
    guard, given = strict("sdxl"), encoded("sdxl", ["x"])
    guard.manifold = replace(manifold("sdxl"), pooled=None)
    with attach(pipeline("sdxl"), guard):
        images("sdxl", ["a"], negative_prompt=["x"])
        with pytest.raises(GuardError, match="none of its pooled embeddings"):
            images("sdxl", None, **given)


def test_pooled_statistics_travel_with_the_others() -> None:
    statistics = manifold("sdxl")
    tensors = statistics.tensors()
    assert len(tensors) == 8 and statistics.pooled is not None
    again = PromptManifold.taken_from(dict(tensors))
    assert again is not None and again.pooled is not None
    for name, value in again.tensors().items():
        assert torch.equal(value, tensors[name])
    alone = {name: value for name, value in tensors.items() if "pooled" in name}
    with pytest.raises(GuardConfigError, match="pooled embeddings alone"):
        PromptManifold.taken_from(alone)


def test_an_image_prompt_comes_as_an_image() -> None:
    world = make_planted()
    guard = strict("sd")
    guard.manifold = None
    guard.refusal_text = lambda: None  # type: ignore[method-assign]
    embeds = world.prepare_ip_adapter_image_embeds(BENIGN_IMAGE, None, "cpu", 1, True)
    how = {**CALL, "generator": torch.Generator().manual_seed(0)}
    with attach(world, guard):
        with pytest.raises(
            GuardError, match=r"ip_adapter_image_embeds are given, .* give ip_adapter_image, an RGB image"
        ):
            world("a star", ip_adapter_image_embeds=embeds, **how)
