"""Guards of every method for the tasks of PictoWorld 2, made without training: the same words and images for all.

Methods that read words serve the text-conditional tasks; `safe-denoiser` and `spell` serve every task, `safe-denoiser-generated`
those without text. Trained guards are packaged as "world2/<task>" and "world2/<task>-<method>".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from saferedir.guards.base import Guard
from saferedir.guards.dual_latent import DualLatentConfig, DualLatentR1
from saferedir.guards.nag import NAG, NAGConfig
from saferedir.guards.negation import NegationSet
from saferedir.guards.negative_prompt import NegativePrompt, NegativePromptConfig
from saferedir.guards.safe_denoiser import SafeDenoiser
from saferedir.guards.safree import Safree, SafreeConfig
from saferedir.guards.sld import SLD, SLDConfig
from saferedir.guards.spell import SPELL
from saferedir.pictoworld.phrases import Phrase
from saferedir.pictoworld.renders import set_of_renders
from saferedir.pictoworld.scene import IMAGE_SIZE
from saferedir.pictoworld.world2.evaluation import generate_classes, generate_unconditional, shows_concept
from saferedir.pictoworld.world2.phrases import phrases_of, poster_phrases
from saferedir.pictoworld.world2.posters import POSTERS
from saferedir.pictoworld.world2.renderer import render_contents
from saferedir.pictoworld.world2.tasks import Content, Task, concept_contents, other_contents
from saferedir.pictoworld.world2.template_judge import TemplateJudge
from saferedir.utils.packaged import GUARD_CONFIG, list_packaged_guards

Maker = Callable[[Task, Any], Guard[Any] | None]

WORLD = "world2"
#: images of a negation set, and as many benign ones
REFERENCES = 400
#: of SPELL's shield around a poster: a little less than the 34 from Quiet Harbour to the nearest of 60 other renders
POSTER_RADIUS = 32.0
#: noise fractions in which a poster is replaced: until later than other images (chosen on validation phrasings)
POSTER_WINDOW = (0.1, 0.8)
#: synonyms beside the plain words that a method which reads words is given
_SYNONYMS = 2


def phrases(task: Task) -> tuple[str, ...]:
    """The words that every method working with words is given: the concept's plain words and two synonyms for training."""
    if task.kind == "composition":
        return ("red cross on a white background", "emblem of an ambulance")
    if task.poster:
        return _chosen(poster_phrases(POSTERS[task.poster]))
    if task.kind == "identities":
        return tuple(values["character"] for values in task.forget)
    (attribute, value), *_ = task.forget[0].items()
    return _chosen(phrases_of(attribute, value))


def _chosen(known: tuple[Phrase, ...]) -> tuple[str, ...]:
    plain = [phrase.text for phrase in known if phrase.level == "canonical"]
    synonyms = [phrase.text for phrase in known if phrase.level == "synonym" and phrase.part == "train"]
    return tuple(plain + synonyms[:_SYNONYMS])


def anchor_and_concept(task: Task) -> tuple[str, str] | None:
    """What to show instead, and the concept in a sentence of the same form; None for a task of many concepts."""
    if task.anchor is None or len(task.forget) > 1:
        return None
    if task.poster:
        return task.anchor["poster"], task.poster
    if task.kind == "identity":
        return task.anchor["character"], task.forget[0]["character"]
    if task.kind == "style":
        return f"a circle in {task.anchor['style']} style", f"a circle in {task.forget[0]['style']} style"
    if task.kind == "composition":
        return "a red circle on a white background", "a red cross on a white background"
    return f"a {task.anchor['shape']}", f"a {task.forget[0]['shape']}"


def negation_set(
    task: Task,
    pipe: Any,
    count: int = REFERENCES,
    seed: int = 0,
    *,
    with_benign: bool = True,
    dtype: torch.dtype = torch.float16,
) -> NegationSet:
    """`count` rendered images that show the concept and as many that do not, as latents of the pipeline (or its pixels).

    A poster is one image, so its set has one.
    """
    shown = _pixels(pipe, concept_contents(task, 1 if task.poster else count, seed))
    sources = f"{len(shown)} rendered images of {task.name}"
    benign = None
    if with_benign:
        benign = _pixels(pipe, other_contents(task, count, seed))
        sources += f", {count} benign ones"
    return set_of_renders(pipe, shown, benign, sources, dtype)


def _pixels(pipe: Any, contents: Sequence[Content]) -> Tensor:
    """Renders in [-1, 1] at the size that the pipeline's model reads: the unconditional one reads 32 pixels."""
    images = render_contents(contents) * 2 - 1
    return images if hasattr(pipe, "vae") else avg_pool2d(images, IMAGE_SIZE // int(pipe.unet.config.sample_size))


def _negative_prompt(task: Task, pipe: Any) -> Guard[Any]:
    return NegativePrompt(NegativePromptConfig(concept=task.name, phrases=phrases(task)))


def _nag(scale: float) -> Maker:
    return lambda task, pipe: NAG(NAGConfig(concept=task.name, phrases=phrases(task), scale=scale))


def _sld(preset: str) -> Maker:
    return lambda task, pipe: SLD(SLDConfig.preset(preset, concept=task.name, phrases=phrases(task)))


def _safree(task: Task, pipe: Any) -> Guard[Any]:
    # filtered at every step: the constants of the paper's rule were fitted to a large CLIP
    return Safree(SafreeConfig(concept=task.name, phrases=phrases(task), svf="off"))


def _dual_latent(w: float) -> Maker:
    def make(task: Task, pipe: Any) -> Guard[Any] | None:
        words = anchor_and_concept(task)
        if words is None:
            return None
        anchor, concept = words
        return DualLatentR1(DualLatentConfig(concept=concept, provider="anchor", anchor=anchor, w=w, tau=0.0))

    return make


def _safe_denoiser(task: Task, pipe: Any) -> Guard[Any]:
    # a class says nothing of its parts, so an image of the wrong part is replaced as a whole, as a poster is; of the
    # unconditional model's images the odds would have half replaced
    form: dict[str, Any] = {"form": "replace" if task.kind == "class part" or task.poster else "posterior"}
    if task.poster:
        form["window"] = POSTER_WINDOW
    return SafeDenoiser.from_set(negation_set(task, pipe), concept=task.name, **form)


def _safe_denoiser_generated(task: Task, pipe: Any) -> Guard[Any]:
    """Benign references that the model generated: at its own shares, where renders are at the corpus'. Some two minutes."""
    shown = _pixels(pipe, concept_contents(task, REFERENCES))
    sources = f"{REFERENCES} rendered images of {task.name}, as many benign ones generated by the model"
    negation = set_of_renders(pipe, shown, _generated_benign(task, pipe, REFERENCES), sources)
    return SafeDenoiser.from_set(negation, concept=task.name, form="replace")


def _generated_benign(task: Task, pipe: Any, count: int, batch: int = 50) -> Tensor:
    """`count` images of a model without text in [-1, 1], neither broken nor of the concept by the template judge.

    It is not the judge that counts on the page, which would be asked about its own choice.
    """
    judge, kept, seed = TemplateJudge(), list[Tensor](), 3_000_000
    while sum(map(len, kept)) < count:
        if task.label is None:
            images = generate_unconditional(pipe, batch, seed=seed).images
        else:
            images = generate_classes(pipe, [task.label] * batch, seed=seed).images
        judged = judge.judge(images)
        kept.append(images[~shows_concept(judged, task) & ~judged.is_broken])
        seed += batch
    return torch.cat(kept)[:count] * 2 - 1


def _spell(task: Task, pipe: Any) -> Guard[Any]:
    # one image has no distance to another of which SPELL could make its radius
    radius = {"radius": POSTER_RADIUS} if task.poster else {}
    return SPELL.from_set(negation_set(task, pipe, with_benign=False), concept=task.name, **radius)


#: name -> maker(task, pipeline), which gives None where the method has nothing to offer for a task
METHODS: Mapping[str, Maker] = {
    "negative-prompt": _negative_prompt,
    "nag": _nag(5.0),
    "nag-strong": _nag(9.0),
    "sld-medium": _sld("medium"),
    "sld-max": _sld("max"),
    "safree": _safree,
    "dual-latent-25": _dual_latent(0.25),
    "dual-latent-50": _dual_latent(0.5),
    "dual-latent-75": _dual_latent(0.75),
    "dual-latent-100": _dual_latent(1.0),
    "safe-denoiser": _safe_denoiser,
    "spell": _spell,
}
#: methods of the tasks without text alone
OF_IMAGES: Mapping[str, Maker] = {"safe-denoiser-generated": _safe_denoiser_generated}
#: methods that need no text
WITHOUT_TEXT = ("safe-denoiser", *OF_IMAGES, "spell")
#: trained guards that edit weights
EDITS = ("duo", "uce", "esd")
#: guards that act together, in this order, joined by " + "
STACKS = tuple(f"{name} + safe-denoiser" for name in ("sld-max", "safree", "dual-latent-100"))
EDIT_STACKS = tuple(f"saferedir + {name}" for name in EDITS)


def make_guards(method: str, task: Task, pipe: Any, trained: Path | None = None) -> list[Guard[Any]] | None:
    """Fresh guards of a method, a stack or "none"; None where it has nothing for this task, or no trained guard is there.

    trained: a folder of trained guards, "<task>" or "<task>-<method>" each, that go before the packaged ones.
    """
    guards: list[Guard[Any]] = []
    for name in () if method == "none" else method.split(" + "):
        maker = METHODS.get(name) or OF_IMAGES.get(name)
        guard = maker(task, pipe) if maker is not None else _trained(name, task, trained)
        if guard is None:
            return None
        guards.append(guard)
    return guards


def _trained(name: str, task: Task, folder: Path | None) -> Guard[Any] | None:
    label = task.name + ("" if name == "saferedir" else f"-{name}")
    if folder is not None and (folder / label / GUARD_CONFIG).is_file():
        return Guard.from_pretrained(folder / label)
    packaged = f"{WORLD}/{label}"
    return Guard.from_pretrained(packaged) if packaged in list_packaged_guards() else None
