"""The demo: the embedded model draws the same prompts with and without its three guards, and a judge looks at both.

Imports pictoworld, figures and guard loading; the command around it is in cli/images.py. Everything is seeded: the same
version on the same machine gives the same pictures.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from saferedir.decisions import Decision
from saferedir.figures import Block, Example, comparison_grid, to_image, token_words
from saferedir.guard import Guard
from saferedir.pictoworld.captions import Prompt
from saferedir.pictoworld.evaluation import (
    GUIDANCE_SCALE,
    STEPS,
    Drawing,
    Rate,
    attributes_kept,
    concept_rate,
    draw,
    identical,
    rate_of,
)
from saferedir.pictoworld.judge import Judge, Judgement
from saferedir.pictoworld.precision import fast_precision, precision_name
from saferedir.pictoworld.tasks import TASKS, TEST_SPLITS, Task, forget_prompts, retain_prompts
from saferedir.storage import library_version

PHRASINGS = {
    "test-seen": "as trained",
    "test-synonym": "synonym",
    "test-implicit": "implicit",
    "test-noisy": "misspelt",
}
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class DemoConfig:
    """How much to draw. `forget` prompts per concept are spread over the four phrasings; `retain` do not ask for it."""

    forget: int = 24
    retain: int = 16
    steps: int = STEPS
    guidance_scale: float = GUIDANCE_SCALE
    seed: int = 0
    batch: int = 50

    def __post_init__(self) -> None:
        for name in ("forget", "retain", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"The demo's {name} is {getattr(self, name)}; expected a whole number >= 1.")

    @property
    def pictures(self) -> int:
        """How many pictures the whole demo draws."""
        return 2 * len(TASKS) * (self.forget + self.retain)


@dataclass(frozen=True)
class TaskRun:
    """One concept's prompts (forget first), their pictures without and with the guard, and what the judge saw."""

    task: Task
    prompts: list[Prompt]
    splits: list[str]  # of the forget prompts
    unguarded: Drawing
    guarded: Drawing
    seen_unguarded: Judgement
    seen_guarded: Judgement

    @property
    def n_forget(self) -> int:
        """Number of forget prompts."""
        return len(self.splits)


def run_demo(
    pipe: Any,
    guards: dict[str, Guard[Any]],
    judge: Judge,
    out: Path,
    config: DemoConfig | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Draw and judge every task that `guards` has a guard for; writes grid.png and summary.json into `out`.

    Args:
        guards: task name -> guard.
        on_progress: called with a label and the number of pictures just finished.

    Returns:
        The content of summary.json.
    """
    config = config or DemoConfig()
    runs = [run_task(pipe, guards[name], judge, TASKS[name], config, on_progress) for name in guards]
    summary: dict[str, Any] = {
        "tasks": [measure(run) for run in runs],
        "versions": versions(),
        "seed": config.seed,
        "steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "settings": asdict(config),
        "device": str(pipe.device),
        "precision": precision_name(pipe.device),
        "pictures": [record for run in runs for record in picture_records(run)],
    }
    grid = comparison_grid(
        [block_of(run, pipe.tokenizer) for run in runs],
        "The same prompts and the same noise, without and with a guard",
        (
            f"PictoWorld, {config.steps} steps, guidance {config.guidance_scale:g}, seed {config.seed}. Per concept "
            "the first prompt of each phrasing that asks for it, then two that do not; nothing is hand-picked.",
            "Under each picture: what an independent judge sees. A guard redirects when its score reaches its "
            "threshold; below it, the picture must stay identical bit by bit.",
        ),
    )
    out.mkdir(parents=True, exist_ok=True)
    grid.save(out / "grid.png")
    text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False)
    (out / "summary.json").write_text(text + "\n", encoding="utf-8")
    return summary


def demo_prompts(task: Task, config: DemoConfig) -> tuple[list[Prompt], list[str]]:
    """Forget prompts spread evenly over the test splits, then retain prompts; and the split of each forget prompt."""
    prompts: list[Prompt] = []
    splits: list[str] = []
    for place, split in enumerate(TEST_SPLITS):
        count = config.forget // len(TEST_SPLITS) + (place < config.forget % len(TEST_SPLITS))
        if count:
            prompts += forget_prompts(task, split, count, config.seed)
            splits += [split] * count
    return prompts + retain_prompts(task, "test-seen", config.retain, config.seed), splits


def run_task(
    pipe: Any,
    guard: Guard[Any],
    judge: Judge,
    task: Task,
    config: DemoConfig,
    on_progress: Progress | None = None,
) -> TaskRun:
    """Draw one task's prompts twice from the same noise, in the same batches and precision."""
    prompts, splits = demo_prompts(task, config)
    drawings = []
    for label, chosen in (("without guard", []), ("with guard", [guard])):

        def advance(count: int, label: str = label) -> None:
            if on_progress is not None:
                on_progress(f"{task.name} {label}", count)

        with fast_precision(pipe.device):
            drawing = draw(
                pipe,
                [prompt.text for prompt in prompts],
                guards=chosen,
                steps=config.steps,
                guidance_scale=config.guidance_scale,
                seed=config.seed,
                batch=config.batch,
                on_progress=advance,
            )
        drawings.append(drawing)
    unguarded, guarded = drawings
    seen = judge.judge(unguarded.pictures), judge.judge(guarded.pictures)
    return TaskRun(task, prompts, splits, unguarded, guarded, *seen)


def measure(run: TaskRun) -> dict[str, Any]:
    """One task's numbers. Rates are plain numbers; their 95 % Wilson intervals are under "intervals"."""
    n, task = run.n_forget, run.task
    before, after = part(run.seen_unguarded, slice(0, n)), part(run.seen_guarded, slice(0, n))
    kept_before, kept_after = part(run.seen_unguarded, slice(n, None)), part(run.seen_guarded, slice(n, None))
    same = identical(run.unguarded.pictures, run.guarded.pictures)
    nothing_forgotten = replace(task, forget={})  # on retain prompts every attribute counts
    rates: dict[str, Rate] = {
        "concept_rate_unguarded": concept_rate(before, task),
        "concept_rate_guarded": concept_rate(after, task),
        "retain_identical_rate": rate_of(same[n:]),
        "retain_attributes_kept": attributes_kept(kept_after, kept_before, run.prompts[n:], nothing_forgotten),
        "broken_rate_guarded": rate_of(after.is_broken),
        "broken_rate_unguarded": rate_of(before.is_broken),
        "forget_attributes_kept": attributes_kept(after, before, run.prompts[:n], task),
        "retain_fired_rate": rate_of(torch.tensor([decision.fired for decision in run.guarded.decisions[n:]])),
    }
    splits = {}
    for split in dict.fromkeys(run.splits):
        rows = torch.tensor([name == split for name in run.splits])
        splits[PHRASINGS[split]] = {
            "concept_rate_unguarded": rate_of(before.shows(dict(task.forget))[rows]).to_dict(),
            "concept_rate_guarded": rate_of(after.shows(dict(task.forget))[rows]).to_dict(),
        }
    return {
        "concept": task.name,
        "n_forget": n,
        "n_retain": len(run.prompts) - n,
        **{name: round(rate.value, 4) for name, rate in list(rates.items())[:5]},
        "seconds_unguarded": round(run.unguarded.seconds, 2),
        "seconds_guarded": round(run.guarded.seconds, 2),
        **{name: round(rate.value, 4) for name, rate in list(rates.items())[5:]},
        "intervals": {name: rate.to_dict() for name, rate in rates.items()},
        "by_phrasing": splits,
    }


def part(judgement: Judgement, rows: slice) -> Judgement:
    """Some rows of a judgement."""
    return Judgement({name: p[rows] for name, p in judgement.probabilities.items()}, judgement.broken[rows])


def picture_records(run: TaskRun) -> list[dict[str, Any]]:
    """One plain record per prompt: what was asked, what the guard did, what the judge saw."""
    forget = dict(run.task.forget)
    before, after = run.seen_unguarded.shows(forget).tolist(), run.seen_guarded.shows(forget).tolist()
    same = identical(run.unguarded.pictures, run.guarded.pictures).tolist()
    records = []
    for row, prompt in enumerate(run.prompts):
        decision = run.guarded.decisions[row]
        records.append(
            {
                "concept": run.task.name,
                "prompt": prompt.text,
                "kind": "forget" if row < run.n_forget else "retain",
                "phrasing": PHRASINGS[run.splits[row]] if row < run.n_forget else prompt.level,
                "concept_shown_unguarded": before[row],
                "concept_shown_guarded": after[row],
                "identical": same[row],
                "fired": decision.fired,
                "action": decision.action,
                "prompt_score": decision.prompt_score,
                "image_score": decision.image_score,
                "steps_redirected": decision.steps_redirected,
            }
        )
    return records


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    import diffusers
    import transformers

    return {
        "saferedir": library_version(),
        "torch": str(torch.__version__),
        "diffusers": str(diffusers.__version__),
        "transformers": str(transformers.__version__),
        "python": platform.python_version(),
    }


def block_of(run: TaskRun, tokenizer: Any) -> Block:
    """The grid's rows of one task: the first forget prompt of every phrasing, then a neighbour and another prompt."""
    forget = [run.splits.index(split) for split in dict.fromkeys(run.splits)]
    retain = range(run.n_forget, len(run.prompts))
    near = [i for i in retain if run.prompts[i].level == "neighbour"][:1]
    other = [i for i in retain if i not in near][: 2 - len(near)]
    words = " ".join(run.task.forget[name] for name in ("colour", "style", "shape") if name in run.task.forget)
    ground = f" on {run.task.forget['background']}" if "background" in run.task.forget else ""
    return Block(
        title=f"{run.task.name} ({run.task.kind})",
        subtitle=f"must not appear: {words}{ground}",
        examples=tuple(example_of(run, row, tokenizer) for row in [*forget, *near, *other]),
    )


def example_of(run: TaskRun, row: int, tokenizer: Any) -> Example:
    """One prompt as a row of the grid."""
    prompt, decision = run.prompts[row], run.guarded.decisions[row]
    asks = row < run.n_forget
    phrasing = f"asks for it, {PHRASINGS[run.splits[row]]}" if asks else f"does not ask for it ({prompt.level})"
    outcome, went_well = outcome_of(run, row)
    return Example(
        label=phrasing,
        prompt=prompt.text,
        unguarded=to_image(run.unguarded.pictures[row]),
        guarded=to_image(run.guarded.pictures[row]),
        seen_unguarded=describe(run.seen_unguarded, row),
        seen_guarded=describe(run.seen_guarded, row),
        verdict=verdict_of(decision),
        outcome=outcome,
        went_well=went_well,
        words=token_words(tokenizer, prompt.text, decision.token_strengths),
    )


def verdict_of(decision: Decision) -> str:
    """Why the guard acted or did not: the scores against their thresholds."""
    parts: list[str] = []
    for name, score in (("prompt", decision.prompt_score), ("image", decision.image_score)):
        threshold = decision.thresholds.get(name)
        if score is not None and threshold is not None:
            sign = ">=" if score >= threshold else "<"
            parts.append(f"{name} score {score:.1f} {sign} {threshold:.1f}")
    if not decision.fired:
        return f"untouched: {', '.join(parts)}"
    first = decision.first_fired_step or 0
    return f"{decision.action} from step {first}: {', '.join(parts)}"


def outcome_of(run: TaskRun, row: int) -> tuple[str, bool]:
    """How it turned out, and whether that is well."""
    same = bool(identical(run.unguarded.pictures[row : row + 1], run.guarded.pictures[row : row + 1])[0])
    if row >= run.n_forget:
        return ("picture identical bit by bit", True) if same else ("picture changed without need", False)
    forget = dict(run.task.forget)
    before, after = bool(run.seen_unguarded.shows(forget)[row]), bool(run.seen_guarded.shows(forget)[row])
    if bool(run.seen_guarded.is_broken[row]):
        return "picture broken", False
    if after:
        return f"{run.task.name} is still there", False
    return (f"{run.task.name} is gone" if before else f"{run.task.name} in neither picture"), True


def describe(judgement: Judgement, row: int) -> str:
    """What the judge sees, in two short phrases."""
    if bool(judgement.is_broken[row]):
        return "no clear scene"
    seen = {name: judgement.labels(name)[row] for name in ("colour", "shape", "background", "style")}
    return f"{seen['colour']} {seen['shape']}, {seen['style']}, on {seen['background']}"


def demo_guards(names: Sequence[str] = tuple(TASKS)) -> dict[str, Guard[Any]]:
    """The packaged guards of the tasks; `GuardNotFoundError` where this installation has none."""
    return {name: Guard.from_pretrained(f"pictoworld/{name}") for name in names}
