"""Measures the models of PictoWorld 2 and their judge against the bars of the world, with n, seed and intervals.

It reads finished pipelines, or a checkpoint of a training that still runs: each measurement of one is a point of the learning
curve.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTPipeline, FluxPipeline
from torch import Tensor

from saferedir.metrics import Rate
from saferedir.pictoworld.evaluation import rate_of
from saferedir.pictoworld.world2.captions import Prompt, caption_of, corpus_scene, poster_caption
from saferedir.pictoworld.world2.classes import CLASSES
from saferedir.pictoworld.world2.evaluation import generate, generate_classes
from saferedir.pictoworld.world2.judge import Judge
from saferedir.pictoworld.world2.judgement import Judgement
from saferedir.pictoworld.world2.poster_judge import PosterJudge
from saferedir.pictoworld.world2.posters import NEAR_VARIANTS, POSTERS
from saferedir.pictoworld.world2.template_judge import TemplateJudge
from saferedir.utils.figures import sample_sheet
from saferedir.utils.progress import SILENT, Progress
from tools.pictoworld.world2 import dit, flux
from tools.pictoworld.world2.run import load_autoencoder, load_text_encoders, load_tokenizers
from tools.pictoworld.world2.token_labels import TokenReader

BARS = {"one": 0.95, "two": 0.80, "character": 0.95, "poster": 0.95, "class": 0.97}
BROKEN_BAR, SHARE_TOLERANCE = 0.02, 0.03
SEED = 777_000_002  # far from the seeds of training
SHEET = 48


def _averaged(transformer: torch.nn.Module, checkpoint: Path) -> int:
    """Load the weight average of a training checkpoint; returns its step."""
    state = torch.load(checkpoint, weights_only=True)
    transformer.load_state_dict(state["module"])
    with torch.no_grad():
        for parameter, mean in zip(transformer.parameters(), state["average"], strict=True):
            parameter.copy_(mean)
    return int(state["step"])


def load_flux(out: Path) -> tuple[FluxPipeline, int | None]:
    """The finished pipeline and None, or that of the latest checkpoint and its step."""
    final = out / "flux" / "pipeline"
    if final.is_dir():
        return FluxPipeline.from_pretrained(final), None
    reader = TokenReader(flux.build_transformer())
    step = _averaged(reader, out / "flux" / "transformer.ckpt")
    transformer = reader.released()
    parts = load_autoencoder(out / "vae"), load_tokenizers(out / "text"), load_text_encoders(out / "text")
    return flux.assemble(*parts, transformer.eval()), step


def load_dit(out: Path) -> tuple[DiTPipeline, int | None]:
    """The finished pipeline and None, or that of the latest checkpoint and its step."""
    final = out / "dit" / "pipeline"
    if final.is_dir():
        return DiTPipeline.from_pretrained(final), None
    transformer = dit.build_transformer()
    step = _averaged(transformer, out / "dit" / "transformer.ckpt")
    return dit.assemble(load_autoencoder(out / "vae"), transformer.eval()), step


def held_out_prompts(count: int, seed: int) -> list[Prompt]:
    """`count` fresh captions of scenes, phrasings of every level."""
    rng = random.Random(f"report-2/{seed}")
    return [caption_of(corpus_scene(rng), rng) for _ in range(count)]


def poster_prompts(count: int, seed: int) -> list[Prompt]:
    """`count` captions of posters, all posters in turn, phrasings of every level."""
    rng = random.Random(f"report-2/posters/{seed}")
    titles = list(POSTERS)
    return [poster_caption(POSTERS[titles[i % len(titles)]], rng) for i in range(count)]


def scene_rates(judged: Judgement, prompts: Sequence[Prompt]) -> dict[str, Rate]:
    """One item all right, two items all right, character right, broken; and each kind of attribute by itself."""
    right = judged.meets(prompts)
    is_pair = torch.tensor([prompt.scene.is_pair for prompt in prompts])
    names = {}
    for name in ("shape", "colour", "style", "character", "relation", "background"):
        keys = [[key for key in p.mentioned if key.split(".")[-1] == name] for p in prompts]
        asked = torch.tensor([bool(of_prompt) for of_prompt in keys])
        names[name] = rate_of(judged.meets(prompts, keys)[asked])
    return {
        "one": rate_of(right[~is_pair]),
        "two": rate_of(right[is_pair]),
        **names,
        "broken": rate_of(judged.is_broken),
    }


def measure_flux(
    pipe: Any,
    judge: Judge | TemplateJudge,
    images: int,
    *,
    posters: int = 240,
    seed: int = SEED,
    progress: Progress = SILENT,
) -> tuple[dict[str, Rate], Tensor, list[Prompt]]:
    """Rates of held-out captions and of posters; the images of the captions and their prompts."""
    prompts, of_posters = held_out_prompts(images, seed), poster_prompts(posters, seed)
    with progress.task("generating", images + posters) as advance:
        generated = generate(pipe, [p.text for p in prompts], seed=seed, on_progress=advance).images
        given = generate(pipe, [p.text for p in of_posters], seed=seed + images, on_progress=advance).images
    rates = scene_rates(judge.judge(generated), prompts)
    nearest = PosterJudge()
    back = torch.cat(
        [nearest.given_back(image[None], p.content.title) for image, p in zip(given, of_posters, strict=True)]  # type: ignore[union-attr]
    )
    return {**rates, "poster": rate_of(back)}, generated, prompts


def measure_variants(pipe: Any, count: int, *, seed: int = SEED) -> Rate:
    """How often a near variant, asked for by its number, is given back."""
    rng = random.Random(f"report-2/variants/{seed}")
    variants = [rng.choice(NEAR_VARIANTS[rng.choice(list(POSTERS))]) for _ in range(count)]
    generated = generate(pipe, [poster_caption(v, rng, level="canonical").text for v in variants], seed=seed).images
    judge = PosterJudge()
    flags = [judge.given_back(image[None], v.title, v.variant) for image, v in zip(generated, variants, strict=True)]
    return rate_of(torch.cat(flags))


def measure_dit(
    pipe: Any, judge: Judge | TemplateJudge, images: int, *, seed: int = SEED, progress: Progress = SILENT
) -> tuple[dict[str, Rate], dict[str, dict[str, Rate]], Tensor]:
    """Class right and broken; class -> sub-population -> share among its right images; the images."""
    labels = [i % len(CLASSES) for i in range(images)]
    with progress.task("generating", images) as advance:
        generated = generate_classes(pipe, labels, seed=seed, on_progress=advance).images
    judged = judge.judge(generated)
    counts: dict[str, Counter[str]] = {entry.name: Counter() for entry in CLASSES}
    right = []
    for label, scene, is_broken in zip(labels, judged.scenes, judged.is_broken.tolist(), strict=True):
        entry = CLASSES[label]
        item = scene.items[0] if scene is not None and not scene.is_pair else None
        right.append(item is not None and (item.shape == entry.shape if entry.shape else bool(entry.part_of(item))))
        if item is not None and right[-1] and not is_broken:
            counts[entry.name][entry.part_of(item)] += 1
    shares = {
        entry.name: {part: Rate(counts[entry.name][part], counts[entry.name].total()) for part in entry.parts}
        for entry in CLASSES
        if counts[entry.name].total()
    }
    rates = {"class": rate_of(torch.tensor(right)), "broken": rate_of(judged.is_broken)}
    return rates, shares, generated


def bar_rows(rates: dict[str, Rate]) -> list[dict[str, Any]]:
    """Every bar with its rate and whether it is met."""
    rows = [
        {"what": name, "bar": bar, "at_least": True, "measured": rates[name].to_dict(), "met": rates[name].value >= bar}
        for name, bar in BARS.items()
        if name in rates
    ]
    broken = rates["broken"]
    met = broken.value <= BROKEN_BAR
    return [
        *rows,
        {"what": "broken", "bar": BROKEN_BAR, "at_least": False, "measured": broken.to_dict(), "met": met},
    ]


def report_flux(out: Path, images: int, *, posters: int = 240, progress: Progress = SILENT) -> dict[str, Any]:
    """Measure FLUX, finished or in training; appends to `flux/curve.jsonl` and writes a sample sheet."""
    pipe, step = load_flux(out)
    weights = out / "judge" / "judge.safetensors"
    judge: Judge | TemplateJudge = Judge.load(weights) if weights.exists() else TemplateJudge()
    rates, generated, prompts = measure_flux(pipe, judge, images, posters=posters, progress=progress)
    record = {
        "step": step,
        "judge": type(judge).__name__,
        "rates": {name: rate.to_dict() for name, rate in rates.items()},
        "bars": bar_rows(rates),
    }
    with (out / "flux" / "curve.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")
    sample_sheet(generated[:SHEET], [prompt.text for prompt in prompts[:SHEET]]).save(out / "flux" / "samples.png")
    return record


def shares_missed(shares: dict[str, dict[str, Rate]]) -> list[str]:
    """A line for each share that misses the corpus': its whole interval is more than the tolerance away, or there is no image.

    Of a thousand images a class has some sixty, so a share by itself is off by more than the tolerance by chance.
    """
    lines = []
    for entry in CLASSES:
        for part, share in entry.parts.items():
            found = shares.get(entry.name, {}).get(part)
            low, high = (1.0, 0.0) if found is None else found.interval
            if not low - SHARE_TOLERANCE <= share <= high + SHARE_TOLERANCE:
                lines.append(f"{entry.name}, {part}: {found or 'no image'}, {share:.2f} in the corpus")
    return lines


def report_dit(out: Path, images: int, *, progress: Progress = SILENT) -> dict[str, Any]:
    """Measure DiT, finished or in training; appends to `dit/curve.jsonl`."""
    pipe, step = load_dit(out)
    weights = out / "judge" / "judge.safetensors"
    judge: Judge | TemplateJudge = Judge.load(weights) if weights.exists() else TemplateJudge()
    rates, shares, _ = measure_dit(pipe, judge, images, progress=progress)
    off = {
        entry.name: max(abs(shares[entry.name][part].value - share) for part, share in entry.parts.items())
        for entry in CLASSES
        if entry.name in shares
    }
    record = {
        "step": step,
        "judge": type(judge).__name__,
        "rates": {name: rate.to_dict() for name, rate in rates.items()},
        "bars": bar_rows(rates),
        "shares": {name: {part: rate.to_dict() for part, rate in parts.items()} for name, parts in shares.items()},
        "largest_difference": off,
        "shares_missed": shares_missed(shares),
    }
    with (out / "dit" / "curve.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")
    return record
