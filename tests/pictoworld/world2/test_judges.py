"""The judges of PictoWorld 2: what a judgement answers, posters by distance, and that the CNN's heads cover every scene."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d

from saferedir.pictoworld.world2.captions import attributes_of, caption
from saferedir.pictoworld.world2.judge import HEADS, Judge, head_values, scene_of
from saferedir.pictoworld.world2.judgement import Judgement, met_keys
from saferedir.pictoworld.world2.poster_judge import PosterJudge, rms_distances, threshold, variant_distances
from saferedir.pictoworld.world2.posters import NEAR_VARIANTS, POSTERS
from saferedir.pictoworld.world2.renderer import render, render_posters
from saferedir.pictoworld.world2.scene import Item, Scene, random_scene
from saferedir.pictoworld.world2.template_judge import TemplateJudge

SEEDS = st.integers(0, 2**32)


def without_places(scene: Scene) -> Scene:
    """The content alone, in reading order, as a judge gives it."""
    scene = scene.in_reading_order()
    return replace(scene, items=tuple(Item(i.shape, i.colour, i.style, i.character) for i in scene.items))


def perfect(scenes: list[Scene]) -> Judgement:
    return Judgement(tuple(without_places(scene) for scene in scenes), torch.zeros(len(scenes)))


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_heads_describe_every_scene_and_give_it_back(seed: int) -> None:
    scene = random_scene(random.Random(seed))
    values = head_values(scene)
    assert all(value in HEADS[name] for name, value in values.items())
    filled = {name: classes[0] for name, classes in HEADS.items()} | values
    assert scene_of(filled) == without_places(scene)
    assert scene_of(filled | {"layout": "poster"}) is None


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_a_right_image_meets_its_prompt_from_either_item(seed: int) -> None:
    rng = random.Random(seed)
    scene = random_scene(rng)
    prompts = [caption(scene, rng), caption(scene.turned(), rng)]
    judgement = perfect([scene, scene])
    assert judgement.meets(prompts).all()
    for index, item in enumerate(scene.items):
        assert judgement.shows({"character": item.character} if item.is_character else {"shape": item.shape}).all()
        assert judgement.meets(prompts[:1] * 2, [[f"{index}.shape", f"{index}.character"]] * 2).all()
    broken = Judgement(judgement.scenes, torch.ones(2))
    assert not broken.meets(prompts).any() and broken.is_labelled({}).all()


def test_a_wrong_place_or_binding_is_not_met() -> None:
    star, ring = Item("star", "red", "flat"), Item("ring", "blue", "striped")
    wanted = Scene("sky", (star, ring), "right of")
    keys = frozenset(attributes_of(wanted))
    assert met_keys(Scene("sky", (ring, star), "left of"), wanted, keys) == keys
    assert met_keys(Scene("sky", (star, ring), "left of"), wanted, keys) == {"background", "relation"}
    above = met_keys(Scene("sky", (ring, star), "above"), wanted, keys)
    assert above == keys - {"relation"}
    crossed = Scene("sky", (replace(ring, colour="red"), replace(star, colour="blue")), "left of")
    assert met_keys(crossed, wanted, keys) == keys - {"0.colour", "1.colour"}
    assert met_keys(Scene("sky", (star,)), wanted, keys) == {"background"}
    assert met_keys(None, wanted, keys) == frozenset()


def test_the_template_judge_reads_renders_and_calls_noise_broken() -> None:
    rng = random.Random(3)
    scenes = [random_scene(rng) for _ in range(12)]
    judgement = TemplateJudge().judge(render(scenes))
    assert judgement.scenes == perfect_contents(judgement.scenes, scenes)
    assert not judgement.is_broken.any()
    prompts = [caption(scene, rng) for scene in scenes]
    assert judgement.meets(prompts).all()
    generator = torch.Generator().manual_seed(0)
    spoilt = torch.stack([torch.full((3, 64, 64), 0.5), torch.rand(3, 64, 64, generator=generator)])
    assert TemplateJudge().judge(spoilt).is_broken.all()


def perfect_contents(judged: tuple[Scene | None, ...], scenes: list[Scene]) -> tuple[Scene | None, ...]:
    """The judged scenes where their content is that of the true ones, else the true ones."""
    return tuple(
        j if j is not None and without_places(j) == without_places(scene) else scene
        for j, scene in zip(judged, scenes, strict=True)
    )


def test_an_untrained_judge_gives_a_judgement_of_every_image() -> None:
    judgement = Judge(width=8, hidden=16).eval().judge(torch.rand(3, 3, 64, 64))
    assert len(judgement) == 3 and judgement.broken.shape == (3,)


@pytest.mark.parametrize("title", list(POSTERS)[::5])
def test_a_poster_and_its_variants_are_told_apart(title: str) -> None:
    judge = PosterJudge()
    poster = render_posters([POSTERS[title]])
    variants = render_posters(NEAR_VARIANTS[title])
    generator = torch.Generator().manual_seed(0)
    disturbed = (poster + 0.04 * torch.randn(poster.shape, generator=generator)).clamp(0, 1)
    assert judge.given_back(torch.cat([poster, disturbed]), title).all()
    assert not judge.given_back(variants, title).any()
    assert judge.given_back(variants[:1], title, variant=1).all()
    assert not judge.given_back(1 - poster, title).any()


def test_thresholds_are_half_the_way_to_the_nearest_variant() -> None:
    for title, distances in variant_distances().items():
        assert len(distances) == 8 and distances[0] > 0.1
        assert threshold(title) == distances[0] / 2
    scenes = render([random_scene(random.Random(i)) for i in range(8)])
    posters = render_posters(list(POSTERS.values()))
    limits = torch.tensor([threshold(title) for title in POSTERS])
    assert (rms_distances(scenes, posters) > limits).all()


def test_the_template_judge_reads_the_small_images_of_the_unconditional_model() -> None:
    scenes = [Scene("white", (Item("star", "red", "flat"),)), Scene("sky", (Item("ring", "blue", "flat"),))]
    judged = TemplateJudge().judge(avg_pool2d(render(scenes), 2))
    assert [(scene.items[0].shape, scene.items[0].colour) for scene in judged.scenes] == [
        ("star", "red"),
        ("ring", "blue"),
    ]
