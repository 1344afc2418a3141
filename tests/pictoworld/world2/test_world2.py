"""PictoWorld 2's content: scenes, characters, posters, classes, and that the renderer shows them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from diffusers import FluxPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

import saferedir as sr
from saferedir.guards.negative_prompt import NegativePrompt, NegativePromptConfig
from saferedir.pictoworld.renderer import BACKGROUND_RGB, render
from saferedir.pictoworld.scene import Scene as FirstScene
from saferedir.pictoworld.world2 import renderer
from saferedir.pictoworld.world2.characters import CHARACTERS, siblings
from saferedir.pictoworld.world2.classes import CLASSES, SHARES, class_scene
from saferedir.pictoworld.world2.posters import NEAR_VARIANTS, POSTERS
from saferedir.pictoworld.world2.scene import PAIR_SHARE, Item, Scene, random_item, random_scene

SEEDS = st.integers(0, 2**32)


def test_forty_characters_in_families_of_four_that_differ_in_one_part() -> None:
    assert len(CHARACTERS) == 40
    for character in CHARACTERS.values():
        family = siblings(character.name)
        assert len(family) == 3
        assert all(character.difference(CHARACTERS[name]) == [character.varied] for name in family)
        assert character.colour != character.trim
        others = [other for name, other in CHARACTERS.items() if name != character.name and name not in family]
        assert min(len(character.difference(other)) for other in others) >= 2
    assert Counter(character.varied for character in CHARACTERS.values()) == dict.fromkeys(
        ("ears", "pattern", "colour", "head", "trim"), 8
    )


@pytest.mark.parametrize("radius", [10.5, 13.0, 18.0])
def test_every_two_characters_look_apart(radius: float) -> None:
    names = list(CHARACTERS)
    images = renderer.render([Scene("grey", (Item(character=name, radius=radius),)) for name in names])
    apart = (images[:, None] - images[None]).abs().amax(dim=2).gt(0.25).flatten(2).sum(-1)  # pixels, every pair
    apart.fill_diagonal_(10_000)
    assert int(apart.min()) >= 10, [names[i] for i in divmod(int(apart.argmin()), len(names))]


def test_a_scene_of_one_object_is_that_of_the_first_world() -> None:
    first = FirstScene("star", "red", "sky", "mosaic", "centre", "medium", 15.0, 31.0, 33.0)
    second = Scene("sky", (Item("star", "red", "mosaic", cx=31.0, cy=33.0, radius=15.0),))
    torch.testing.assert_close(renderer.render([second]), render([first]))


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_a_scene_told_from_the_other_item_is_the_same_image(seed: int) -> None:
    rng = random.Random(seed)
    scene = random_scene(rng, items=(random_item(rng), random_item(rng)))
    assert scene.turned().turned() == scene
    assert scene.in_reading_order() == scene.turned().in_reading_order()
    assert torch.equal(renderer.render([scene]), renderer.render([scene.turned()]))  # they do not overlap


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_items_stand_where_the_relation_says_inside_the_image(seed: int) -> None:
    rng = random.Random(seed)
    scene = random_scene(rng, items=(random_item(rng), random_item(rng)))
    first, second = scene.items
    across = {
        "left of": second.cx - first.cx,
        "right of": first.cx - second.cx,
        "above": second.cy - first.cy,
        "below": first.cy - second.cy,
    }
    assert across[scene.relation] > first.radius + second.radius
    for item in scene.items:
        assert all(item.radius <= place <= 64 - item.radius for place in (item.cx, item.cy))


def test_half_of_all_scenes_are_pairs_and_every_value_occurs() -> None:
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(2000)]
    assert abs(sum(scene.is_pair for scene in scenes) / 2000 - PAIR_SHARE) < 0.04
    items = [item for scene in scenes for item in scene.items]
    assert {item.character for item in items} == {"", *CHARACTERS}
    assert all(bool(item.character) != bool(item.shape and item.colour and item.style) for item in items)


def test_fixing_a_value_changes_nothing_else() -> None:
    for seed in range(50):
        plain, fixed = (
            random_item(random.Random(seed), may_be_character=False, **more) for more in ({}, {"shape": "star"})
        )
        assert fixed == replace(plain, shape="star")


@pytest.mark.parametrize("items", [(), (Item("star", "red", "flat"),) * 2, (Item("star", "red", "flat"),) * 3])
def test_a_scene_that_cannot_be_is_refused(items: tuple[Item, ...]) -> None:
    with pytest.raises(ValueError, match="one item and no relation"):
        Scene("sky", items)


def test_posters_are_fixed_and_their_variants_share_the_layout_alone() -> None:
    assert len(POSTERS) == 24
    images = renderer.render_posters(list(POSTERS.values()))
    for poster, image in zip(POSTERS.values(), images, strict=True):
        variants = NEAR_VARIANTS[poster.title]
        assert len({variant.figures for variant in variants}) == 8
        for variant in variants:
            assert [(f.shape, f.style, f.cx, f.cy, f.radius) for f in variant.figures] == [
                (f.shape, f.style, f.cx, f.cy, f.radius) for f in poster.figures
            ]
        nearest = (renderer.render_posters(variants) - image).square().mean(dim=(1, 2, 3)).min()
        assert float(nearest) > 0.005
    apart = (images[:, None] - images[None]).square().mean(dim=(2, 3, 4))
    apart.fill_diagonal_(1.0)
    assert float(apart.min()) > 0.02


def test_classes_are_mixtures_with_the_shares_they_say() -> None:
    assert [entry.index for entry in CLASSES] == list(range(16))
    rng = random.Random(1)
    for entry in CLASSES:
        assert tuple(entry.parts.values()) == SHARES and abs(sum(SHARES) - 1) < 1e-9
        found = Counter(entry.part_of(class_scene(entry.index, rng).items[0]) for _ in range(1500))
        assert set(found) == set(entry.parts)
        assert all(abs(found[part] / 1500 - share) < 0.045 for part, share in entry.parts.items())
    twenty = [list(entry.parts)[2] for entry in CLASSES]
    assert len(set(twenty)) == 16  # another colour or character in every class


def test_backgrounds_fill_what_no_item_covers() -> None:
    for background, colour in BACKGROUND_RGB.items():
        image = renderer.render([Scene(background, (Item(character="Zepka", radius=12.0),))])[0]
        torch.testing.assert_close(image[:, 0, 0], torch.tensor(colour))


def test_the_packaged_flux_is_a_plain_pipeline_that_a_guard_fits() -> None:
    pipe = sr.load_pipeline("pictoworld-flux")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is FluxPipeline
    call = {"num_inference_steps": 2, "height": 64, "width": 64, "max_sequence_length": 32, "output_type": "pt"}
    guarded = {**call, "negative_prompt": "", "true_cfg_scale": 3.0}

    def images(**more: object) -> torch.Tensor:
        return pipe("a red star on sand", generator=torch.Generator().manual_seed(0), **more).images  # type: ignore[no-any-return]

    bare = images(**guarded)
    assert bare.shape == (1, 3, 64, 64) and bool(torch.isfinite(bare).all())
    guard = NegativePrompt(NegativePromptConfig(concept="star", phrases=("star",)))
    with sr.attach(pipe, guard):
        assert not torch.equal(images(**guarded), bare)
    assert torch.equal(images(**guarded), bare)
