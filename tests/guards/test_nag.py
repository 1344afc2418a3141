"""NAG against its formula, its fixed points, and the rule that the phrases' row keeps the image of the prompt's row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from tests.newer_pipelines import EVERY
from tests.tiny_pipelines import PIPELINES, run
from torch import Tensor

import saferedir as sr
from saferedir.errors import GuardConfigError, UnsupportedPipelineError
from saferedir.guard import AttentionFeatures, Guard, GuardConfig, Step
from saferedir.guards.nag import NAG, NAGConfig, guided_features

GUIDABLE = ("sd", "sdxl", "sd3", "flux", "pixart-sigma", "sana", "aura-flow", "wan", "wan-2.2")
one_of_each = pytest.mark.parametrize("name", GUIDABLE)


def nag(**settings: Any) -> NAG:
    return NAG(NAGConfig(concept="the moon", **settings))


def test_it_is_the_papers_formula_token_by_token() -> None:
    random = torch.Generator().manual_seed(0)
    z_p, z_n = (torch.randn(2, 3, 5, generator=random, dtype=torch.float64) for _ in range(2))
    alpha = torch.tensor([0.25, 1.0])
    found = guided_features(z_p, z_n, 4.0, 1.5, alpha)
    for image in range(2):
        for token in range(3):
            p, n = z_p[image, token], z_n[image, token]
            guided = 4.0 * p - 3.0 * n
            growth = guided.abs().sum() / p.abs().sum()
            limited = min(float(growth), 1.5) / growth * guided
            expected = alpha[image] * limited + (1 - alpha[image]) * p
            torch.testing.assert_close(found[image, token], expected, rtol=1e-5, atol=1e-6)


@one_of_each
def test_it_acts_and_leaves_the_image_where_it_has_nothing_to_say(name: str) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    bare = run(case, pipe)
    with sr.attach(pipe, nag()) as attached:
        guided = run(case, pipe)
        (decision,) = attached.decisions
    assert decision.fired and (guided - bare).abs().max() > 1e-2
    for idle in (
        nag(scale=1.0),
        nag(alpha=0.0),
        NAG(NAGConfig(concept="a star")),
    ):  # the last: its words are the prompt
        with sr.attach(pipe, idle):
            torch.testing.assert_close(run(case, pipe), bare, rtol=1e-3, atol=1e-4 * float(bare.abs().max()))
    assert torch.equal(run(case, pipe), bare)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_it_acts_without_guidance_in_one_step(name: str) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    bare = run(case, pipe, steps=1, **case.unguided)
    with sr.attach(pipe, nag()):
        assert not torch.equal(run(case, pipe, steps=1, **case.unguided), bare)


@pytest.mark.parametrize("name", ["lumina", "lumina2", "z-image", "flux-2", "qwen-image"])
def test_where_the_prompt_takes_another_way_it_is_refused_when_attached(name: str) -> None:
    with pytest.raises(UnsupportedPipelineError, match="past what such a guard can edit"):
        sr.attach(EVERY[name].build(), nag())


def test_the_phrases_row_keeps_the_image_of_the_prompts_row() -> None:
    """Over all families it is said to work on, the two rows' predictions agree although their prompts differ."""

    class Rows(NAG):
        def on_prediction(self, step: Step) -> Tensor:
            assert step.pred_cond is not None
            away = (step.pred_extra[0] - step.pred_cond).abs().max() / step.pred_cond.abs().max()
            differences.append(float(away))
            return super().on_prediction(step)

    for name in GUIDABLE:
        differences: list[float] = []
        case = PIPELINES[name]
        pipe = case.build()
        with sr.attach(pipe, Rows(NAGConfig(concept="the moon"))):
            run(case, pipe)
        assert differences and max(differences) < 1e-4, name


def test_it_goes_on_where_adapters_replace_layers() -> None:
    case = PIPELINES["sd"]
    pipe = case.build()
    with sr.attach(pipe, nag()):
        guided = run(case, pipe)
    lora = LoraConfig(r=2, target_modules=["attn2.to_out.0"], init_lora_weights=True)
    pipe.unet.add_adapter(lora, "user")
    with sr.attach(pipe, nag()):
        torch.testing.assert_close(run(case, pipe), guided, rtol=1e-4, atol=1e-4)
        pipe.unet.delete_adapters("user")
        unwrap(pipe.unet)
        torch.testing.assert_close(run(case, pipe), guided, rtol=1e-4, atol=1e-4)


def unwrap(unet: Any) -> None:
    """Put the base layers back in place of peft's, as unloading a LoRA does."""
    for path, layer in [(path, part) for path, part in unet.named_modules() if hasattr(part, "get_base_layer")]:
        parent, _, attribute = path.rpartition(".")
        setattr(unet.get_submodule(parent), attribute, layer.get_base_layer())


class Second(Guard[GuardConfig]):
    """Adds to one image's attention and to nothing else; says what it was given."""

    method = "second"

    def __init__(self) -> None:
        super().__init__(GuardConfig(concept="star"))
        self.layers: list[int] = []

    def on_attention(self, step: Step, attention: AttentionFeatures) -> Tensor:
        self.layers.append(attention.layer)
        assert attention.extra == () and attention.cond.ndim == 3
        chosen = torch.arange(len(attention.cond)) == 1
        return torch.where(chosen[:, None, None], attention.cond + 1.0, attention.cond)


def test_two_guards_of_attention_keep_to_their_own_rows_and_images() -> None:
    case = PIPELINES["sd"]
    pipe = case.build()
    with sr.attach(pipe, nag()):
        alone = run(case, pipe, ["a star", "a star"])
    second = Second()
    for guards in ([second, nag()], [nag(), Second()]):
        with sr.attach(pipe, guards):
            both = run(case, pipe, ["a star", "a star"])
        torch.testing.assert_close(both[0], alone[0], rtol=1e-4, atol=1e-4)
        assert (both[1] - alone[1]).abs().max() > 1e-2
    assert second.layers[0] == 0 and second.layers.count(0) == 3 and max(second.layers) > 0


def test_hooks_are_gone_afterwards_and_a_copy_has_none() -> None:
    pipe = PIPELINES["sd"].build()
    before = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in pipe.unet.modules())
    attached = sr.attach(pipe, nag())
    attached.detach()
    after = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in pipe.unet.modules())
    assert before == after


@pytest.mark.parametrize("settings", [{"scale": 0.5}, {"tau": 0.9}, {"alpha": 1.5}, {"phrases": ("",), "concept": " "}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(GuardConfigError):
        NAGConfig(**{"concept": "star", **settings})
