"""Guards of every method for the three tasks, made without training: the same words and the same images for all.

Trained guards (SafeRedir, DUO) have recipes of their own (duo_recipe.py); everything here is ready in seconds. Methods
that work with words are made in code; those that carry images are written by `python -m tools.pictoworld guards`, and the
package carries them: the very tensors that are made here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch

from saferedir.guards.base import Guard
from saferedir.guards.dual_latent import DualLatentConfig, DualLatentR1, DualLatentR2, DualLatentR2Config
from saferedir.guards.nag import NAG, NAGConfig
from saferedir.guards.negation import NegationSet
from saferedir.guards.negative_prompt import NegativePrompt, NegativePromptConfig
from saferedir.guards.safe_denoiser import SafeDenoiser
from saferedir.guards.safree import Safree, SafreeConfig
from saferedir.guards.sld import SLD, SLDConfig
from saferedir.guards.spell import SPELL
from saferedir.pictoworld.renderer import render
from saferedir.pictoworld.renders import set_of_renders
from saferedir.pictoworld.scene import random_scene
from saferedir.pictoworld.tasks import Task, retain_prompts
from saferedir.pipelines.fingerprint import vae_fingerprint
from saferedir.utils.packaged import list_packaged_guards

#: the words that every method working with words is given: the concept's name and phrases a guard may train on
PHRASES: Mapping[str, tuple[str, ...]] = {
    "star": ("star", "five-pointed figure", "pentagram", "stellar form"),
    "pointillism": ("in pointillism style", "in dotted style", "drawn with dots"),
    "emblem": ("red cross on a white background", "emblem of an ambulance"),
}
#: what to show instead, and the name of the concept in a sentence of the same form
ANCHORS: Mapping[str, tuple[str, str]] = {
    "star": ("a circle", "a star"),
    "pointillism": ("a circle in flat style", "a circle in pointillism style"),
    "emblem": ("a red circle on a white background", "a red cross on a white background"),
}
#: images of a negation set, and as many benign ones for its gate
REFERENCES = 400


def negation_set(
    task: Task,
    pipe: Any,
    count: int = REFERENCES,
    seed: int = 0,
    *,
    with_benign: bool = True,
    dtype: torch.dtype = torch.float16,
) -> NegationSet:
    """`count` rendered images that show the concept, in scenes of the guards' training part, and as many that do not."""
    rng = random.Random(f"negation/{task.name}/{seed}")
    shown = render([random_scene(rng, **dict(task.forget)) for _ in range(count)])
    sources = f"{count} rendered pictures of {task.name}"  # as the packaged sets say it
    benign = None
    if with_benign:
        benign = render([prompt.scene for prompt in retain_prompts(task, "guard-train", count, seed)]) * 2 - 1
        sources += f", {count} benign ones"
    return set_of_renders(pipe, shown * 2 - 1, benign, sources, dtype)


def _negative_prompt(task: Task, pipe: Any) -> Guard[Any]:
    return NegativePrompt(NegativePromptConfig(concept=task.name, phrases=PHRASES[task.name]))


def _nag(scale: float) -> Callable[[Task, Any], Guard[Any]]:
    return lambda task, pipe: NAG(NAGConfig(concept=task.name, phrases=PHRASES[task.name], scale=scale))


def _sld(preset: str) -> Callable[[Task, Any], Guard[Any]]:
    def make(task: Task, pipe: Any) -> Guard[Any]:
        return SLD(SLDConfig.preset(preset, concept=task.name, phrases=PHRASES[task.name]))

    return make


def _safree(svf: str) -> Callable[[Task, Any], Guard[Any]]:
    # lra="paper", though the class has "off" by default: latent re-attention, a third row in the steps that filter. Not
    # svf="code": its constants were fitted to CLIP, and by them this small encoder's prompts are never filtered
    def make(task: Task, pipe: Any) -> Guard[Any]:
        return Safree(SafreeConfig(concept=task.name, phrases=PHRASES[task.name], lra="paper", svf=svf))

    return make


def _dual_latent(w: float) -> Callable[[Task, Any], Guard[Any]]:
    def make(task: Task, pipe: Any) -> Guard[Any]:
        anchor, concept = ANCHORS[task.name]
        return DualLatentR1(DualLatentConfig(concept=concept, provider="anchor", anchor=anchor, w=w, tau=0.0))

    return make


def _dual_latent_r2(task: Task, pipe: Any) -> Guard[Any]:
    anchor, concept = ANCHORS[task.name]
    return DualLatentR2(DualLatentR2Config(concept=concept, provider="anchor", anchor=anchor, w=0.75, tau=0.0))


def _safe_denoiser(task: Task, pipe: Any) -> Guard[Any]:
    # 8-bit rows: as float16 both groups would be 1.6 MB, and what the package carries must not differ from what is made here
    return SafeDenoiser.from_set(negation_set(task, pipe, dtype=torch.int8), concept=task.name)


def _renoise_only(task: Task, pipe: Any) -> Guard[Any]:
    """Safe Denoiser that acts at the same steps on the same images, samples fresh noise there, and moves nothing."""
    negation = negation_set(task, pipe, dtype=torch.int8)
    return SafeDenoiser.from_set(negation, concept=task.name, eta=0.0, renoise="stale")


def _spell(task: Task, pipe: Any) -> Guard[Any]:
    return SPELL.from_set(negation_set(task, pipe, with_benign=False), concept=task.name)


#: name -> maker(task, pipeline)
METHODS: Mapping[str, Callable[[Task, Any], Guard[Any]]] = {
    "negative-prompt": _negative_prompt,
    "nag": _nag(5.0),
    "nag-strong": _nag(9.0),
    "sld-medium": _sld("medium"),
    "sld-max": _sld("max"),
    "safree": _safree("paper"),
    "safree-all-steps": _safree("off"),
    "dual-latent-25": _dual_latent(0.25),
    "dual-latent-50": _dual_latent(0.5),
    "dual-latent-75": _dual_latent(0.75),
    "dual-latent-100": _dual_latent(1.0),
    "dual-latent-r2": _dual_latent_r2,
    "safe-denoiser": _safe_denoiser,
    "spell": _spell,
}

#: not methods but what they are compared with: recipes for a bench's matrix, in no comparison unless asked for
CONTROLS: Mapping[str, Callable[[Task, Any], Guard[Any]]] = {"renoise-only": _renoise_only}

#: methods whose guards carry data; the package has them as "pictoworld/<task>-<method>"
WITH_DATA = ("safe-denoiser", "spell")
#: guards that act together, in this order, joined by " + "
STACKS = ("saferedir + safe-denoiser", "duo + saferedir")
#: every column of a comparison; "none" is the bare pipeline
ORDER = ("none", "saferedir", "duo", *METHODS, *STACKS)
#: SafeRedir without the rules and tests of docs/hardening.md, and stacks of it: what comparisons up to November 2026 measured
USUAL = ("saferedir-usual", *(name.replace("saferedir", "saferedir-usual") for name in STACKS))


def make_guards(method: str, task: Task, pipe: Any) -> list[Guard[Any]] | None:
    """Fresh guards of a method, a stack, a control or "none"; None where a trained one is not packaged for this task."""
    guards: list[Guard[Any]] = []
    for name in () if method == "none" else method.split(" + "):
        suffix = {"saferedir": "", "saferedir-usual": "-usual"}.get(name, f"-{name}")
        packaged = f"pictoworld/{task.name}{suffix}"
        is_packaged = packaged in list_packaged_guards()
        if is_packaged and name in WITH_DATA:  # of the packaged world; one trained anew has another VAE
            guard: Guard[Any] = Guard.from_pretrained(packaged)
            is_packaged = guard.config.backbone == {"architecture": {"vae": vae_fingerprint(pipe.vae)}}
        if name in CONTROLS:
            guards.append(CONTROLS[name](task, pipe))
        elif name in METHODS and not (is_packaged and name in WITH_DATA):
            guards.append(METHODS[name](task, pipe))
        elif is_packaged:
            guards.append(Guard.from_pretrained(packaged))
        else:
            return None
    return guards
