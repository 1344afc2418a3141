"""Measures the embedded model and its judge against the quality bar, with n, seed and intervals.

The page that shows the numbers is report_page.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferedir.metrics import Rate
from saferedir.pictoworld.captions import Prompt, corpus_prompt
from saferedir.pictoworld.evaluation import GUIDANCE_SCALE, STEPS, concept_rate, generate, rate_of
from saferedir.pictoworld.judge import Judge, Judgement
from saferedir.pictoworld.renderer import render
from saferedir.pictoworld.scene import JUDGED, VALUES, Scene, random_scene
from saferedir.pictoworld.tasks import TASKS, TEST_SPLITS, forget_prompts
from saferedir.pictoworld.template_judge import TemplateJudge
from saferedir.pipelines.precision import fast_precision, precision_name
from saferedir.utils.figures import sample_sheet
from saferedir.utils.progress import SILENT, Advance, Progress
from tools.pictoworld.report_page import page

ATTRIBUTE_BAR, ALL_BAR, BROKEN_BAR, JUDGE_BAR = 0.97, 0.92, 0.01, 0.995
CONCEPT_BARS = {"test-seen": 0.95, "test-synonym": 0.95, "test-implicit": 0.90, "test-noisy": 0.80}
SHEET = 48  # images on the sample sheet, 8 x 6


@dataclass(frozen=True)
class ReportConfig:
    """How much to measure. `seed` is far from the seeds of training, so that its captions and noise are fresh.

    Attributes:
        images: held-out captions generated; concept_images: prompts per concept and phrasing.
        judge_images: renders on which the judge is measured; template_images: images for the second judge.
    """

    images: int = 2000
    concept_images: int = 100
    judge_images: int = 4000
    template_images: int = 100
    steps: int = STEPS
    guidance_scale: float = GUIDANCE_SCALE
    batch: int = 50
    seed: int = 777_000_001

    def __post_init__(self) -> None:
        for name in ("images", "concept_images", "judge_images", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"The report's {name} is {getattr(self, name)}; expected a whole number >= 1.")

    @property
    def n_images(self) -> int:
        """How many images the model generates in all."""
        return self.images + len(TASKS) * len(TEST_SPLITS) * self.concept_images


def quality_report(
    pipe: Any,
    judge: Judge,
    images: int,
    out: Path,
    *,
    config: ReportConfig | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure `pipe` and `judge`; writes report.json, pictoworld.md and pictoworld.png into `out`.

    Args:
        images: number of held-out captions; overrides `config.images`.
        progress: called with the number of images generated.

    Returns:
        The content of report.json.
    """
    config = ReportConfig(**{**asdict(config or ReportConfig()), "images": images})
    prompts = held_out_prompts(config.images, config.seed)
    with progress.task("generating", config.n_images) as advance:
        generated = _generate(pipe, prompts, config, "held-out captions", advance)
        concepts = measure_concepts(pipe, judge, config, advance)
    judged = judge.judge(generated)
    model = {**attribute_rates(judged, prompts), "broken": rate_of(judged.is_broken)}
    template = TemplateJudge().judge(generated[: config.template_images])
    report: dict[str, Any] = {
        "settings": asdict(config),
        "precision": precision_name(pipe.device),
        "torch": str(torch.__version__),
        "model": {name: rate.to_dict() for name, rate in model.items()},
        "concepts": concepts,
        "judge": measure_judge(judge, pipe.vae, config),
        "template_agreement": {
            name: rate.to_dict() for name, rate in agreement(judged, template, config.template_images).items()
        },
    }
    report["bars"] = bars(report)
    out.mkdir(parents=True, exist_ok=True)
    captions = [prompt.text for prompt in prompts[:SHEET]]
    sample_sheet(generated[:SHEET], captions).save(out / "pictoworld.png")
    (out / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (out / "pictoworld.md").write_text(page(report), encoding="utf-8")
    return report


def held_out_prompts(count: int, seed: int) -> list[Prompt]:
    """Fresh captions from the corpus's own distribution."""
    rng = random.Random(f"report/{seed}")
    return [corpus_prompt(rng) for _ in range(count)]


def attribute_rates(judgement: Judgement, prompts: Sequence[Prompt]) -> dict[str, Rate]:
    """Per judged attribute: how often the image has the value the caption fixed; "all": all fixed ones together."""
    scenes = [prompt.scene for prompt in prompts]
    rates: dict[str, Rate] = {}
    every = torch.ones(len(prompts), dtype=torch.bool)
    for attribute in JUDGED:
        fixed = torch.tensor([attribute in prompt.mentioned for prompt in prompts])
        right = judgement.matches(scenes, attribute)
        rates[attribute] = rate_of(right[fixed])
        if attribute != "position":
            every = every & (right | ~fixed)
    rates["all four"] = rate_of(every)
    return rates


def _generate(pipe: Any, prompts: Sequence[Prompt], config: ReportConfig, label: str, advance: Advance) -> Tensor:
    def count(images: int) -> None:
        advance(images, label)

    with fast_precision(pipe.device):
        return generate(
            pipe,
            [prompt.text for prompt in prompts],
            steps=config.steps,
            guidance_scale=config.guidance_scale,
            seed=config.seed,
            batch=config.batch,
            on_progress=count,
        ).images


def measure_concepts(
    pipe: Any, judge: Judge, config: ReportConfig, advance: Advance = lambda n=1, label="": None
) -> dict[str, dict[str, Any]]:
    """How often the unguarded model generates each forget concept, per phrasing."""
    rates: dict[str, dict[str, Any]] = {}
    for name, task in TASKS.items():
        rates[name] = {}
        for split in TEST_SPLITS:
            prompts = forget_prompts(task, split, config.concept_images, config.seed)
            images = _generate(pipe, prompts, config, f"{name}, {split}", advance)
            rates[name][split] = concept_rate(judge.judge(images), task).to_dict()
    return rates


def measure_judge(judge: Judge, vae: Any, config: ReportConfig) -> dict[str, Any]:
    """The judge on held-out renders, on their autoencoder round trips, and on spoilt images."""
    from tools.pictoworld.training.judge import round_trip, spoil

    rng = random.Random(f"judge/{config.seed}")
    generator = torch.Generator().manual_seed(config.seed)
    totals = {name: [0] * len(JUDGED) for name in ("renders", "round_trips")}
    called_broken = {"renders": 0, "round_trips": 0, "spoilt": 0}
    confusion = {
        name: torch.zeros(len(VALUES[name]), len(VALUES[name]), dtype=torch.long) for name in ("shape", "style")
    }
    for start in range(0, config.judge_images, 250):
        scenes = [random_scene(rng) for _ in range(min(250, config.judge_images - start))]
        images = render(scenes)
        with torch.no_grad():
            passed = round_trip(vae, images.to(vae.device, vae.dtype), generator).cpu()
        views = {"renders": images, "round_trips": passed}
        for view, chunk in views.items():
            judged = judge.judge(chunk)
            called_broken[view] += int(judged.is_broken.sum())
            for position, name in enumerate(JUDGED):
                totals[view][position] += int(judged.matches(scenes, name).sum())
            if view == "renders":
                _count(confusion, judged, scenes)
        called_broken["spoilt"] += int(judge.judge(spoil(images, generator)).is_broken.sum())
    n = config.judge_images
    return {
        **{
            view: {name: Rate(hits, n).to_dict() for name, hits in zip(JUDGED, counts, strict=True)}
            for view, counts in totals.items()
        },
        "called_broken": {view: Rate(hits, n).to_dict() for view, hits in called_broken.items()},
        "confusion": {
            name: {"values": list(VALUES[name]), "counts": matrix.tolist()} for name, matrix in confusion.items()
        },
    }


def _count(confusion: dict[str, Tensor], judged: Judgement, scenes: Sequence[Scene]) -> None:
    """Add to the matrices, rows = truth, columns = what the judge says."""
    for name, matrix in confusion.items():
        predicted = judged.probabilities[name].argmax(dim=1)
        for scene, column in zip(scenes, predicted.tolist(), strict=True):
            matrix[scene.index(name), column] += 1


def agreement(judged: Judgement, template: Judgement, count: int) -> dict[str, Rate]:
    """How often the two judges say the same about the first `count` images that neither of them calls broken."""
    whole = ~judged.is_broken[:count] & ~template.is_broken
    rates = {
        name: rate_of((judged.probabilities[name][:count].argmax(1) == template.probabilities[name].argmax(1))[whole])
        for name in JUDGED
    }
    return {**rates, "broken": rate_of(judged.is_broken[:count] == template.is_broken)}


def bars(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per bar: what, the bar, the measured rate, and whether it is met ("at most" for broken)."""
    rows: list[tuple[str, float, dict[str, Any], bool]] = [
        *((f"{name} right", ATTRIBUTE_BAR, report["model"][name], True) for name in JUDGED if name != "position"),
        ("all four together", ALL_BAR, report["model"]["all four"], True),
        ("broken", BROKEN_BAR, report["model"]["broken"], False),
        *(
            (f"{task} generated, {split.removeprefix('test-')}", CONCEPT_BARS[split], rate, True)
            for task, rates in report["concepts"].items()
            for split, rate in rates.items()
        ),
        *((f"judge, {name} on renders", JUDGE_BAR, report["judge"]["renders"][name], True) for name in JUDGED),
    ]
    return [
        {
            "what": what,
            "bar": bar,
            "at_least": at_least,
            "measured": rate,
            "met": rate["rate"] >= bar if at_least else rate["rate"] <= bar,
        }
        for what, bar, rate, at_least in rows
    ]
