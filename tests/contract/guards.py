"""Guards of the contract tests: one row for every registered method, and scripted ones that use one point each.

A row costs a function `make(pipe, case)` returning a guard that acts on every image of that pipeline. Imports
saferedir and tests.tiny_pipelines; the checks they go through are in tests/contract/features.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from tests.tiny_pipelines import PipelineCase, run
from tests.tiny_variants import ALL_CASES
from torch import Tensor

import saferedir as sr
from saferedir.guard import Conditioning, Guard, GuardConfig, PromptEmbeds, Run, Step
from saferedir.guards.negation import NegationSet
from saferedir.guards.registry import guard_class
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.guard import SafeRedir
from saferedir.guards.saferedir.network import Redirector, RedirectorConfig
from saferedir.guards.saferedir_many import SafeRedirMany, SafeRedirManyConfig
from saferedir.pipelines.encoding import encode_prompts
from saferedir.pipelines.families import FAMILIES
from saferedir.pipelines.fingerprint import backbone_fingerprint

GuardKind = Literal["steps", "weights", "rows"]
PROMPT, OTHER_PROMPT = "a star", "the moon"
CONFIG = GuardConfig(concept="star")


@dataclass(frozen=True)
class GuardCase:
    """One row: how to make the guard, and what is to be expected of it."""

    name: str
    make: Callable[[Any, PipelineCase], Guard[Any]]
    is_method: bool = True  # registered, so that it can be saved and loaded
    kind: GuardKind = "steps"  # what it edits; "rows": steps, with rows of its own in the denoiser's calls
    is_acting: bool = True  # changes every image; False: changes nothing
    is_exact_in_batches: bool = True  # a batch equals single runs
    rides_when_idle: bool = False  # a row of its own rides in the first call where guidance might follow in a second
    idle_note: str = ""  # for the page: what else is known of runs without guidance
    needs: str = ""  # "pooled" or "guidance": without it on a pipeline, the guard changes nothing there

    def is_exact_when_idle(self, case: PipelineCase) -> bool:
        """Whether it changes no bit where it has nothing to do; else it is close, up to rounding."""
        return not (self.rides_when_idle and FAMILIES[case.family].is_sequential)

    def lacks(self, case: PipelineCase) -> str:
        """What the pipeline does not have and the guard needs, as a sentence; "" where nothing is missing."""
        if self.needs == "pooled" and first_step(case.name).pooled is None:
            return "no pooled prompt embeddings"
        if self.needs == "guidance" and not case.guidance:
            return "no classifier-free guidance"
        return ""


class Watcher(Guard[GuardConfig]):
    """Uses every point of intervention and touches nothing; keeps what it saw."""

    method = "watcher"

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.runs: list[Run] = []
        self.steps: list[Step] = []

    def start(self, run: Run) -> None:
        self.runs.append(run)

    def on_prompt(self, step: Step) -> Tensor:
        return step.prompt_embeds

    def on_step_start(self, step: Step) -> Tensor:
        return step.prompt_embeds

    def on_prediction(self, step: Step) -> Tensor:
        assert step.pred is not None
        return step.pred

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        self.steps.append(step)
        return x0

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        return latents


class X0Editor(Guard[GuardConfig]):
    """Pulls the denoised estimate of chosen images half-way to zero."""

    method = "x0-editor"

    def __init__(self, *rows: int) -> None:
        super().__init__(CONFIG)
        self.rows = rows

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        chosen = torch.tensor([not self.rows or image in self.rows for image in range(len(x0))])
        return torch.where(chosen.view(-1, *(1,) * (x0.ndim - 1)), 0.5 * x0, x0)


class ExtraRows(Guard[GuardConfig]):
    """Asks for two more rows; where an image has the same prompt, checks that it has the same prediction."""

    method = "extra-rows"
    texts: ClassVar = [PROMPT, OTHER_PROMPT]

    def __init__(self, embeds: Tensor | None = None) -> None:
        super().__init__(CONFIG)
        self.embeds = embeds
        self.own_rows: tuple[int, ...] = ()  # images whose prompt is the first extra one
        self.compared = 0

    def extra_prompts(self, run: Run) -> list[str] | Tensor:
        return self.texts if self.embeds is None else self.embeds

    def on_step_start(self, step: Step) -> Tensor:
        return step.prompt_embeds

    def on_prediction(self, step: Step) -> Tensor:
        assert step.pred is not None and step.pred_cond is not None
        own, other = step.pred_extra
        for row in self.own_rows:
            torch.testing.assert_close(own[row], step.pred_cond[row], rtol=1e-3, atol=1e-3)
            assert not torch.allclose(other[row], step.pred_cond[row], rtol=1e-3, atol=1e-3)
            self.compared += 1
        return step.pred + 0.5 * (other - step.pred_cond) + 0.1 * (own - step.pred_cond)


class Pooled(Guard[GuardConfig]):
    """Turns the pooled prompt embeddings round, once and for the whole run."""

    method = "pooled"

    def on_prompt(self, step: Step) -> Conditioning:
        return step.conditioning.with_cond(pooled=None if step.pooled is None else -3.0 * step.pooled)


class Negative(Guard[GuardConfig]):
    """Puts the image's own prompt, turned round, in place of the negative one."""

    method = "negative"

    def on_step_start(self, step: Step) -> Conditioning:
        return step.conditioning._replace(uncond=PromptEmbeds(-step.prompt_embeds))


class Redirect(Guard[GuardConfig]):
    """Turns the prompt embeddings of chosen images round, at every step; shrunk ones would be normalised back."""

    method = "redirect"

    def __init__(self, *rows: int) -> None:
        super().__init__(CONFIG)
        self.rows = rows

    def on_step_start(self, step: Step) -> Tensor:
        chosen = torch.tensor([not self.rows or image in self.rows for image in range(len(step.prompt_embeds))])
        return torch.where(chosen[:, None, None], -step.prompt_embeds, step.prompt_embeds)


@functools.cache
def shared_pipeline(name: str) -> Any:
    """The pipeline of a case, built once; for checks that leave it as they found it."""
    return ALL_CASES[name].build()


@functools.cache
def first_step(name: str) -> Step:
    """A recorded moment of a run of the case: sizes of embeddings and latents can be read off it."""
    watcher = Watcher()
    with sr.attach(shared_pipeline(name), watcher):
        run(ALL_CASES[name], shared_pipeline(name), PROMPT)
    return watcher.steps[0]


@functools.cache
def fingerprint(name: str) -> dict[str, Any]:
    return backbone_fingerprint(shared_pipeline(name))


def tiny_network(case: PipelineCase, **more: Any) -> Redirector:
    """A random redirector of the pipeline's sizes."""
    step = first_step(case.name)
    config = RedirectorConfig(
        prompt_dim=step.prompt_embeds.shape[-1],
        pooled_dim=0 if step.pooled is None else step.pooled.shape[-1],
        latent_channels=step.x_t.shape[1],
        latent_widths=(8, 8),
        latent_strides=(1, 2),
        hidden=16,
        width=16,
        rank=16,
        t_dim=8,
        **more,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Redirector(config)


def make_saferedir(pipe: Any, case: PipelineCase) -> SafeRedir:
    """A random redirector, with thresholds below every score."""
    network = tiny_network(case)
    settings = {"prompt_threshold": -1e3, "image_threshold": -1e3, "patience": 100}
    return SafeRedir(
        SafeRedirConfig(concept="star", network=network.config.to_dict(), backbone=fingerprint(case.name), **settings),
        network,
    )


def make_saferedir_many(pipe: Any, case: PipelineCase) -> SafeRedirMany:
    """Rows of two random concepts, with thresholds below every score."""
    network = tiny_network(case, concepts=("star", "ring"), row_heads=True, has_joint=False)
    low = (-1e3, -1e3)
    settings = {"prompt_thresholds": low, "image_thresholds": low, "last_thresholds": (1e3, 1e3), "patience": 100}
    return SafeRedirMany(
        SafeRedirManyConfig(
            concept="star, ring", network=network.config.to_dict(), backbone=fingerprint(case.name), **settings
        ),
        network,
    )


def make_extra_embeds(pipe: Any, case: PipelineCase) -> ExtraRows:
    call = {name: case.settings[name] for name in ("max_sequence_length", "system_prompt") if name in case.settings}
    with torch.no_grad():
        return ExtraRows(encode_prompts(pipe, ExtraRows.texts, call).prompt)


def by_config(method: str, **settings: Any) -> Callable[[Any, PipelineCase], Guard[Any]]:
    """A guard that is its configuration and nothing else."""

    def make(pipe: Any, case: PipelineCase) -> Guard[Any]:
        found: Any = guard_class(method)
        return found(found.config_class(concept="star", **settings))

    return make


def by_references(method: str, **settings: Any) -> Callable[[Any, PipelineCase], Guard[Any]]:
    """A guard of eight random reference latents, shaped as the pipeline's."""

    def make(pipe: Any, case: PipelineCase) -> Guard[Any]:
        found: Any = guard_class(method)
        shape = first_step(case.name).x_t.shape[1:]
        references = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
        return found.from_set(NegationSet.from_latents(references), concept="star", **settings)

    return make


#: start of a family's name -> its names of projections
PROJECTIONS = {
    "kandinsky-5": {"to_q": "to_query", "to_k": "to_key", "to_v": "to_value"},
    "prx": {"to_q": "img_qkv_proj", "to_k": "txt_kv_proj", "to_v": "txt_kv_proj"},
}


def by_lora(method: str, targets: tuple[str, ...]) -> Callable[[Any, PipelineCase], Guard[Any]]:
    """Random LoRA layers on some projections; ten times stronger they blow rounding up (in float64 all agrees)."""

    def make(pipe: Any, case: PipelineCase) -> Guard[Any]:
        generator = torch.Generator().manual_seed(0)
        name = FAMILIES[case.family].denoiser
        names = next((names for start, names in PROJECTIONS.items() if case.family.startswith(start)), {})
        chosen = tuple(dict.fromkeys(names.get(target, target) for target in targets))
        lora: dict[str, Tensor] = {}
        for module, layer in getattr(shared_pipeline(case.name), name).named_modules():
            if module.endswith(chosen):
                lora[f"{module}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=generator)
                lora[f"{module}.lora_B.weight"] = 0.1 * torch.randn(layer.out_features, 2, generator=generator)
        found: Any = guard_class(method)
        return found(found.config_class(concept="star", component=name, rank=2, targets=chosen), lora)

    return make


_METHODS = (
    GuardCase("saferedir", make_saferedir),
    GuardCase("saferedir_many", make_saferedir_many),
    GuardCase("duo", by_lora("duo", ("to_q", "to_k", "to_v")), kind="weights"),
    GuardCase("uce", by_lora("uce", ("to_k", "to_v")), kind="weights"),
    GuardCase("esd", by_lora("esd", ("to_q", "to_v")), kind="weights"),
    GuardCase("safe_denoiser", by_references("safe_denoiser", gate="always", window=(0.0, 1.0), trust=None)),
    GuardCase("spell", by_references("spell", radius=1e3)),
    GuardCase(
        "negative_prompt",
        by_config("negative_prompt", without_guidance="ignore"),
        kind="rows",
        needs="guidance",
        idle_note="by its variant 'standard'; 'subtract' has a row of its own, and there holds what is said of sld",
    ),
    # nobody knows in the first call of a sequential pipeline whether guidance follows, and a larger batch rounds otherwise: 2e-6
    GuardCase(
        "sld",
        by_config("sld", threshold=100.0, warmup_steps=0, without_guidance="ignore"),
        kind="rows",
        needs="guidance",
        rides_when_idle=True,
    ),
    GuardCase("nag", by_config("nag"), kind="rows"),
    GuardCase("dual_latent_r1", by_config("dual_latent_r1", w=0.9, tau=0.0), kind="rows"),
    GuardCase("dual_latent_r2", by_config("dual_latent_r2", w=0.9, tau=0.0, dual_fraction=0.7), kind="rows"),
    # the negative prompt stays the user's, so that its own part is seen
    GuardCase("safree", by_config("safree", margin=-1.0, svf="off", negative=False)),
)
_SCRIPTS = (
    GuardCase("watcher", lambda pipe, case: Watcher(), is_method=False, is_acting=False),
    GuardCase("x0-editor", lambda pipe, case: X0Editor(), is_method=False),
    GuardCase("extra-texts", lambda pipe, case: ExtraRows(), is_method=False),
    # embeddings come without a mask, so that beside longer prompts more of their padding is read
    GuardCase("extra-embeds", make_extra_embeds, is_method=False, is_exact_in_batches=False),
    GuardCase("pooled", lambda pipe, case: Pooled(CONFIG), is_method=False, needs="pooled"),
    GuardCase("negative", lambda pipe, case: Negative(CONFIG), is_method=False, needs="guidance"),
)
GUARDS: dict[str, GuardCase] = {row.name: row for row in (*_METHODS, *_SCRIPTS)}
