"""Conflicts among the twenty concepts of one guard on PictoWorld; writes docs/conflicts.md and .json.

Run: python benchmarks/conflicts.py --out docs
Does guarding A raise B, and does redirecting from A lead into B? Captions of random scenes, the same noise with and without a
guard. A first run only logs all concepts, which leaves the images as they are and says which concept would act where; then
each concept's row acts alone on the images that it would act on, and once more together with the rows that it leads into by
the guard's own record. Last, a policy that keeps out every second value, by the guard's own anchors and by anchors that it
chooses among the others. Finished concepts are kept in --work, so that a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

import saferedir as sr
from saferedir.decisions import Decision
from saferedir.guards.saferedir_many import SafeRedirMany
from saferedir.metrics import GuardConflict, Rate, guard_conflicts
from saferedir.pictoworld.captions import caption, scene_part
from saferedir.pictoworld.evaluation import GUIDANCE_SCALE, cell, load_judge
from saferedir.pictoworld.scene import VALUES, random_scene
from saferedir.pictoworld.tasks import VALUE_TASKS
from saferedir.pipelines.safety_checker import without_safety_checker
from saferedir.utils.files import replacing

SEED, BATCH = 7_000_000, 40
ATTRIBUTES = ("shape", "colour", "style")
#: name and how to make it -> a record, made unless it is kept from an earlier run
Kept = Callable[[str, Callable[[], Any]], Any]
HEAD = """# Conflicts among twenty concepts

Made by `python benchmarks/conflicts.py --n {n} --steps {steps} --together {together} --out docs`: {n} captions of
random test scenes, {steps} DDIM steps, guidance {guidance}, the same noise with and without the guard
(`pictoworld/values`), judged by the CNN; `saferedir.metrics.guard_conflicts`. A row of the first table is the guard
of that concept alone. Rates are of the {n} images with their 95 % Wilson intervals; "raised" are the concepts of
which more images show it than without the guard, by an exact one-sided McNemar test with Holm's correction over all
{pairs} ordered pairs.

- **acted**: images on which the concept's row acted.
- **itself**: images that show the concept, bare → guarded.
- **leads into**: the other concept that the guard's record names (the anchor of its pairs), and of the images on which the row
  acted and that did not show it, the share that shows it then.
- **raised**: all concepts that are raised, p ≤ .05 after Holm.
- **highest other**: of all concepts but that one, the one that most of the redirected images newly show.

"""
BOTH = """## Both at once

The row of each concept and those that it leads into, on together, on the images that the concept's row acts on: how many still
show either, and how many of those images the guard calls `unresolved` (a policy of `verify` generates them again or blocks them).

"""
ANCHORS = """## Anchors that the policy chooses

A policy that keeps out every second shape, colour and style of the world's lists ({guarded}). The guard's own anchors
lie within that half, each value's being the one half its list away. By default, and with an anchor for each rule that
names a shape, a colour and a style of the other half only (a rule's `anchor`; such as "{example}"). Rates have their
95 % Wilson intervals; "raised" and "newly show" are as above, each concept's row alone; Holm's correction is over the
{pairs} ordered pairs of guarded concepts. An anchor takes the place of the whole prompt, so that what else it asked
for goes: "rest kept" are the images on which a row acted whose other two attributes (of shape, colour and style) are
judged as in the bare image.

"""


def captions(n: int) -> list[str]:
    """Captions of n different test scenes; shape, colour, style and background are all named."""
    rng, texts = random.Random("conflicts"), dict[str, None]()
    while len(texts) < n:
        scene = random_scene(rng)
        if scene_part(scene) == "test":
            levels = dict.fromkeys(("shape", "colour", "background", "style"), "canonical")
            texts.setdefault(caption(scene, rng, part="test", levels=levels, level_name="canonical").text)
    return list(texts)


@torch.no_grad()
def generate(
    pipe: Any, guard: SafeRedirMany, texts: list[str], rows: list[int], steps: int
) -> tuple[Tensor, list[Decision]]:
    """Images of the captions of those numbers, and decisions; `image` of a decision is its place in `rows`."""
    images: list[Tensor] = []
    decisions: list[Decision] = []
    for start in range(0, len(rows), BATCH):
        chunk = rows[start : start + BATCH]
        generators = [torch.Generator().manual_seed(SEED + row) for row in chunk]
        with without_safety_checker(pipe), sr.attach(pipe, guard) as attached:
            images.append(
                pipe(
                    [texts[row] for row in chunk], num_inference_steps=steps, guidance_scale=GUIDANCE_SCALE,
                    generator=generators, output_type="pt",
                ).images
            )  # fmt: skip
            decisions += [replace(d, image=d.image + start) for d in attached.decisions]
    return torch.cat(images), decisions


def shown(judge: Any, images: Tensor) -> dict[str, list[bool]]:
    """Concept -> which of the images show it."""
    judged = judge.judge(images)
    return {name: judged.shows(dict(task.forget)).tolist() for name, task in VALUE_TASKS.items()}


def measure(
    guard: SafeRedirMany, texts: list[str], together_n: int, steps: int, work: Path, progress: Progress
) -> dict[str, Any]:
    """The bare images' concepts, and for each concept the images that its row acts on, alone and with those it leads into."""
    pipe, judge = sr.load_pipeline("pictoworld"), load_judge()
    pipe.set_progress_bar_config(disable=True)
    everything = list(range(len(texts)))
    names = guard.config.concepts

    def kept(name: str, make: Callable[[], Any]) -> Any:
        path = work / f"{name}-{len(texts)}-{steps}.json"
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(make()), encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))

    def bare() -> dict[str, Any]:
        images, decisions = generate(pipe, guard.deciding({n: n for n in names}, names), texts, everything, steps)
        acted: dict[str, list[int]] = {name: [] for name in names}
        for decision in decisions:
            if decision.fired:
                acted[decision.concept].append(decision.image)
        return {"shown": shown(judge, images), "acted": {name: sorted(rows) for name, rows in acted.items()}}

    def concept(name: str, rows: list[int]) -> dict[str, Any]:
        images, _ = generate(pipe, guard.deciding({name: name}), texts, rows, steps)
        others = list(guard.config.calibration.get(name, {}).get("leads_into", {}))
        record: dict[str, Any] = {"shown": shown(judge, images), "leads_into": others}
        if others:
            together = guard.deciding({each: each for each in (name, *others)})
            images, decisions = generate(pipe, together, texts, rows, steps)
            unresolved = {decision.image for decision in decisions if decision.unresolved}
            record["together"] = {
                "shown": shown(judge, images),
                "unresolved": [i in unresolved for i in range(len(rows))],
            }
        return record

    first = kept("bare", bare)
    of_concepts = {}
    for name in progress.track(names, description="concepts"):
        of_concepts[name] = kept(name, partial(concept, name, first["acted"][name]))
    anchors = measure_anchors(guard, first, texts, together_n, steps, kept, progress)
    return {**first, "concepts": of_concepts, "with_anchors": anchors}


def chosen_anchors(guarded: list[str]) -> dict[str, str]:
    """Guarded concept -> a caption of a scene of which shape, colour and style are all not guarded."""
    rng = random.Random("anchors")
    free = {
        attribute: [value for value in VALUES[attribute] if f"{attribute}-{value}" not in guarded]
        for attribute in ATTRIBUTES
    }
    levels = dict.fromkeys(("shape", "colour", "background", "style"), "canonical")
    return {
        name: caption(
            random_scene(rng, **{attribute: values[number % len(values)] for attribute, values in free.items()}),
            rng, part="test", levels=levels, level_name="canonical",
        ).text
        for number, name in enumerate(guarded)
    }  # fmt: skip


def measure_anchors(
    guard: SafeRedirMany,
    first: dict[str, Any],
    texts: list[str],
    together_n: int,
    steps: int,
    kept: Kept,
    progress: Progress,
) -> dict[str, Any]:
    """Each guarded concept's row alone under the anchor of its rule, and all rows at once under either kind of anchors."""
    pipe, judge = sr.load_pipeline("pictoworld"), load_judge()
    pipe.set_progress_bar_config(disable=True)
    guarded = list(VALUE_TASKS)[::2]
    anchors = chosen_anchors(guarded)

    def alone(name: str) -> dict[str, Any]:
        row = guard.deciding({name: name}).with_anchors({name: anchors[name]})
        return {"shown": shown(judge, generate(pipe, row, texts, first["acted"][name], steps)[0])}

    def part(policy: SafeRedirMany, rows: list[int]) -> dict[str, Any]:
        images, decisions = generate(pipe, policy, texts, rows, steps)
        unresolved = {decision.image for decision in decisions if decision.unresolved}
        return {"shown": shown(judge, images), "unresolved": [rows[place] for place in sorted(unresolved)]}

    def together(kind: str, policy: SafeRedirMany) -> dict[str, Any]:
        """Of all captions, batch by batch."""
        whole: dict[str, Any] = {"shown": {name: [] for name in VALUE_TASKS}, "unresolved": []}
        for start in range(0, together_n, BATCH):
            rows = list(range(start, min(start + BATCH, together_n)))
            result = kept(f"policy-{kind}-{start}", partial(part, policy, rows))
            whole["unresolved"] += result["unresolved"]
            for name, flags in result["shown"].items():
                whole["shown"][name] += flags
        return whole

    every = guard.deciding({name: name for name in guarded})
    of_concepts = {
        name: kept(f"anchor-{name}", partial(alone, name)) for name in progress.track(guarded, description="anchors")
    }
    policies = {
        "default": together("default", every),
        "chosen": together("chosen", every.with_anchors(anchors)),
    }
    return {"anchors": anchors, "concepts": of_concepts, "policies": policies, "together_n": together_n}


def anchors_table(record: dict[str, Any], n: int) -> tuple[list[str], dict[str, list[GuardConflict]]]:
    """A line a question, a column a kind of anchors; and the pairs of guarded concepts."""
    chosen = record["with_anchors"]
    guarded = list(chosen["anchors"])
    kinds = {"default": record["concepts"], "chosen": chosen["concepts"]}
    results, columns = {}, {}
    of_policy = {"bare": {"shown": record["shown"], "unresolved": []}, **chosen["policies"]}
    for kind, of_concepts in kinds.items():
        part = {
            "shown": {name: record["shown"][name] for name in guarded},
            "acted": record["acted"],
            "concepts": {name: of_concepts[name] for name in guarded},
        }
        results[kind] = conflicts(part, n)
        acted, newly, rest = 0, 0, 0
        for name in guarded:
            flags = of_concepts[name]["shown"]
            others = [each for each in VALUE_TASKS if each.partition("-")[0] != name.partition("-")[0]]
            for place, row in enumerate(record["acted"][name]):
                acted += 1
                new = [
                    each for each in guarded if each != name and flags[each][place] and not record["shown"][each][row]
                ]
                newly += bool(new)
                rest += all(flags[each][place] == record["shown"][each][row] for each in others)
        columns[kind] = {
            "raised pairs": f"{sum(each.is_raised() for each in results[kind])} of {len(results[kind])}",
            "images on which a row acted, alone, that newly show another guarded concept": ratio(newly, acted),
            "rest kept": ratio(rest, acted),
        }
    for kind, of in of_policy.items() if chosen["together_n"] else ():
        shows = [any(of["shown"][name][i] for name in guarded) for i in range(chosen["together_n"])]
        left = [i for i, flag in enumerate(shows) if flag]
        caught = len(set(left) & set(of["unresolved"]))
        columns.setdefault(kind, {}).update({
            "all rows at once: images that show a guarded concept": ratio(sum(shows), len(shows)),
            "of those: unresolved": "–" if kind == "bare" else ratio(caught, len(left)) if left else "none is left",
        })  # fmt: skip
    order = ("bare", "default", "chosen") if chosen["together_n"] else ("default", "chosen")
    titles = {"bare": "no guard", "default": "default anchors", "chosen": "chosen anchors"}
    lines = [f"| | {' | '.join(titles[kind] for kind in order)} |", "|---" * (len(order) + 1) + "|"]
    for question in columns["default"]:
        lines.append(f"| {question} | {' | '.join(columns[kind].get(question, '–') for kind in order)} |")
    return lines, results


def ratio(hits: int, n: int) -> str:
    """Counts, and the rate with its interval."""
    return f"{hits} of {n}: {short(Rate(hits, n))}"


def conflicts(record: dict[str, Any], n: int) -> list[GuardConflict]:
    """Every ordered pair, over all n images: where a row does not act the image is the bare one."""
    bare = {name: torch.tensor(flags) for name, flags in record["shown"].items()}
    guarded, acted = {}, {}
    for guard, result in record["concepts"].items():
        rows = torch.tensor(record["acted"][guard], dtype=torch.long)
        guarded[guard] = {
            name: flags.index_put((rows,), torch.tensor(result["shown"][name])) for name, flags in bare.items()
        }
        acted[guard] = torch.zeros(n, dtype=torch.bool).index_fill(0, rows, True)
    return guard_conflicts(bare, guarded, acted)


def short(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.value:.2f} [{low:.2f}, {high:.2f}]"


def table(record: dict[str, Any], results: list[GuardConflict], n: int) -> list[str]:
    """A line a concept."""
    lines = ["| concept | acted | itself | leads into | raised | highest other |", "|---" * 6 + "|"]
    for name, result in record["concepts"].items():
        mine = [each for each in results if each.guarded == name]
        rows, anchors = record["acted"][name], result["leads_into"]
        before = Rate(sum(record["shown"][name]), n)
        fired = set(rows)
        after = Rate(
            sum(result["shown"][name]) + sum(f for i, f in enumerate(record["shown"][name]) if i not in fired), n
        )
        leads = "; ".join(f"{each.concept} {short(each.led_into)}" for each in mine if each.concept in anchors) or "–"
        raised = ", ".join(
            f"{each.concept} {each.before.value:.2f} → {each.after.value:.2f}" for each in mine if each.is_raised()
        )
        other = max((each for each in mine if each.concept not in anchors), key=lambda each: each.led_into.value)
        lines.append(
            f"| {name} | {len(rows)} | {short(before)} → {short(after)} | {leads} | {raised or 'none'} | "
            f"{other.concept} {short(other.led_into)} |"
        )
    return lines


def both_table(record: dict[str, Any]) -> list[str]:
    """A line a concept that leads into another."""
    lines = ["| concept | with | images | shows it | shows the other | of those: unresolved |", "|---" * 6 + "|"]
    for name, result in record["concepts"].items():
        if "together" not in result:
            continue
        flags, others = result["together"]["shown"], result["leads_into"]
        count = len(record["acted"][name])
        other = [any(flags[each][i] for each in others) for i in range(count)]
        either = [flags[name][i] or other[i] for i in range(count)]
        caught = sum(flag and either[i] for i, flag in enumerate(result["together"]["unresolved"]))
        rates = [Rate(sum(flags[name]), count), Rate(sum(other), count), Rate(caught, sum(either))]
        cells = [cell(rate.to_dict()) if rate.n else "–" for rate in rates]
        lines.append(f"| {name} | {', '.join(others)} | {count} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", default="pictoworld/values")
    parser.add_argument("--n", type=int, default=320, help="captions")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--together", type=int, default=160, help="captions for all rows at once; 0: none")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("runs/conflicts"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    guard = SafeRedirMany.from_pretrained(arguments.guard)
    with Progress() as progress:
        together_n = min(arguments.n, arguments.together)
        record = measure(guard, captions(arguments.n), together_n, arguments.steps, arguments.work, progress)
    results = conflicts(record, arguments.n)
    anchors = {(name, other) for name, result in record["concepts"].items() for other in result["leads_into"]}
    raised = [each for each in results if each.is_raised()]
    outside = [each for each in raised if (each.guarded, each.concept) not in anchors]
    text = HEAD.format(
        n=arguments.n, steps=arguments.steps, together=together_n, guidance=f"{GUIDANCE_SCALE:g}", pairs=len(results)
    )
    lines = [
        *table(record, results, arguments.n), "",
        f"Of {len(results)} ordered pairs {len(raised)} are raised, {len(outside)} of them not what the record names.", "",
        *BOTH.splitlines(), *both_table(record), "",
    ]  # fmt: skip
    anchors_lines, of_anchors = anchors_table(record, arguments.n)
    chosen = record["with_anchors"]["anchors"]
    anchors_head = ANCHORS.format(
        guarded=", ".join(chosen), example=next(iter(chosen.values())), pairs=len(of_anchors["chosen"])
    )
    lines += [*anchors_head.splitlines(), *anchors_lines, ""]
    arguments.out.mkdir(parents=True, exist_ok=True)
    plain = {
        "n": arguments.n,
        "steps": arguments.steps,
        "pairs": [each.to_dict() for each in results],
        "pairs_of_policy": {kind: [each.to_dict() for each in pairs] for kind, pairs in of_anchors.items()},
        "record": record,
    }
    for ending, content in {"md": text + "\n".join(lines), "json": json.dumps(plain) + "\n"}.items():
        with replacing(arguments.out / f"conflicts.{ending}") as temporary:
            temporary.write_text(content, encoding="utf-8")
    print(f"{len(results)} pairs, {len(raised)} raised, {len(outside)} of them beside the recorded anchor")


if __name__ == "__main__":
    main()
