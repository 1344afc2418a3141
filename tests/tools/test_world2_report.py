"""The report of PictoWorld 2 on models that are known: one that renders what it is asked for, one that never does."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch
from tools.pictoworld.world2.report import (
    SEED,
    bar_rows,
    held_out_prompts,
    measure_dit,
    measure_flux,
    poster_prompts,
    shares_missed,
)

from saferedir.metrics import Rate
from saferedir.pictoworld.world2.classes import CLASSES, class_scene
from saferedir.pictoworld.world2.evaluation import (
    background_kept,
    concept_rate,
    generate_unconditional,
    other_item_kept,
    prompts_kept,
)
from saferedir.pictoworld.world2.judgement import Judgement
from saferedir.pictoworld.world2.renderer import render, render_contents
from saferedir.pictoworld.world2.scene import Scene
from saferedir.pictoworld.world2.tasks import TASKS, pair, retain_prompts
from saferedir.pictoworld.world2.template_judge import TemplateJudge


class Renderer:
    """A pipeline that renders the content of the prompts it knows, or the class, and noise for anything else."""

    def __init__(self, contents: dict[str, Any]) -> None:
        self.contents, self.calls, self.rng = contents, [], random.Random(0)

    def set_progress_bar_config(self, **_: Any) -> None: ...

    def __call__(self, **call: Any) -> SimpleNamespace:
        self.calls.append(call)
        if "class_labels" in call:
            images = render([class_scene(label, self.rng) for label in call["class_labels"]])
        elif "prompt" in call:
            images = render_contents([self.contents[text] for text in call["prompt"]])
        else:
            images = torch.rand(call["batch_size"], 3, 64, 64)
        return SimpleNamespace(images=images.permute(0, 2, 3, 1).numpy())


def test_a_model_that_renders_its_prompts_meets_every_bar() -> None:
    prompts, posters = held_out_prompts(8, SEED), poster_prompts(6, SEED)
    pipe = Renderer({p.text: p.content for p in (*prompts, *posters)})
    rates, generated, same = measure_flux(pipe, TemplateJudge(), 8, posters=6)
    assert same == prompts and generated.shape == (8, 3, 64, 64)
    assert rates["poster"].value == 1 and all(row["met"] for row in bar_rows(rates))
    call = pipe.calls[0]
    assert (call["height"], call["max_sequence_length"], call["negative_prompt"]) == (64, 32, [""] * 8)


def test_classes_are_counted_by_sub_population() -> None:
    rates, shares, _ = measure_dit(Renderer({}), TemplateJudge(), 16)
    assert rates["class"].hits == rates["class"].n == 16
    assert all(sum(part.hits for part in parts.values()) == 1 for parts in shares.values())


def test_a_share_misses_by_more_than_chance_or_not_at_all() -> None:
    exact = {
        entry.name: {part: Rate(round(60 * share), 60) for part, share in entry.parts.items()} for entry in CLASSES
    }
    assert shares_missed(exact) == []
    first = CLASSES[0]
    part = next(iter(first.parts))
    off = {**exact, first.name: {**exact[first.name], part: Rate(0, 60)}}
    assert len(shares_missed(off)) == 1 and part in shares_missed(off)[0]
    assert len(shares_missed({**exact, first.name: {}})) == len(first.parts)


def test_seeds_do_not_depend_on_the_batch() -> None:
    pipe = Renderer({})
    generate_unconditional(pipe, 5, seed=7, batch=2)
    assert [call["batch_size"] for call in pipe.calls] == [2, 2, 1]
    assert [g.initial_seed() for call in pipe.calls for g in call["generator"]] == [7, 8, 9, 10, 11]


def test_what_is_kept_is_counted_where_it_was_right() -> None:
    task = TASKS["star-2"]
    pairs = [pair(task, "guard-train", random.Random(i)) for i in range(12)]
    unsafe = [first for first, _ in pairs]
    bare = Judgement(tuple(p.scene.in_reading_order() for p in unsafe), torch.zeros(12))
    anchored = Judgement(tuple(safe.scene.in_reading_order() for _, safe in pairs), torch.zeros(12))
    assert concept_rate(bare, task).value == 1 and concept_rate(anchored, task).value == 0
    kept = other_item_kept(anchored, bare, unsafe, task)
    assert kept.value == 1 and kept.n == sum(p.scene.is_pair for p in unsafe)
    assert background_kept(anchored, bare, unsafe, task).value == 1
    nothing = Judgement((None,) * 12, torch.zeros(12))
    assert other_item_kept(nothing, bare, unsafe, task).value == 0
    assert other_item_kept(bare, nothing, unsafe, task).n == 0
    retain = retain_prompts(task, "test-seen", 60)  # posters among them
    scenes = [p.content.in_reading_order() if isinstance(p.content, Scene) else None for p in retain]
    met = Judgement(tuple(scenes), torch.zeros(len(retain)))
    kept = prompts_kept(met, met, retain)
    assert kept.value == 1 and kept.n == sum(scene is not None for scene in scenes) < len(retain)
