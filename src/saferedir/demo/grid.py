"""The demo's rows for the comparison grid: which prompts are shown, and the captions beside them.

Texts use only the signs that Pillow's own font has.
"""

from __future__ import annotations

from typing import Any

from saferedir.decisions import Decision
from saferedir.demo.measure import PHRASINGS, TaskRun
from saferedir.pictoworld.evaluation import identical
from saferedir.pictoworld.judge import Judgement
from saferedir.utils.figures import Block, Example, to_image, token_words


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
        unguarded=to_image(run.unguarded.images[row]),
        guarded=to_image(run.guarded.images[row]),
        judged_unguarded=describe(run.unguarded_judgement, row),
        judged_guarded=describe(run.guarded_judgement, row),
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
    same = bool(identical(run.unguarded.images[row : row + 1], run.guarded.images[row : row + 1])[0])
    if row >= run.n_forget:
        return ("image identical bit by bit", True) if same else ("image changed without need", False)
    forget = dict(run.task.forget)
    before, after = bool(run.unguarded_judgement.shows(forget)[row]), bool(run.guarded_judgement.shows(forget)[row])
    if bool(run.guarded_judgement.is_broken[row]):
        return "image broken", False
    if after:
        return f"{run.task.name} is still there", False
    return (f"{run.task.name} is gone" if before else f"{run.task.name} in neither image"), True


def describe(judgement: Judgement, row: int) -> str:
    """What the judge finds, in two short phrases."""
    if bool(judgement.is_broken[row]):
        return "no clear scene"
    scored = {name: judgement.labels(name)[row] for name in ("colour", "shape", "background", "style")}
    return f"{scored['colour']} {scored['shape']}, {scored['style']}, on {scored['background']}"
