"""Tokens an attack may use, on the tokenizers of the tiny pipelines (CLIP's and T5's) and PictoWorld's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_pipelines import CASES

import saferedir as sr
from saferedir.errors import AttackError
from saferedir.target import Target, Vocabulary


def encoders_of(name: str) -> tuple[Any, ...]:
    pipe = sr.load_pipeline("pictoworld") if name == "pictoworld" else next(c for c in CASES if c.name == name).build()
    with Target(pipe) as target:
        return target.text_encoders


@pytest.fixture(scope="module")
def world() -> Vocabulary:
    return Vocabulary(encoders_of("pictoworld")[0])


@pytest.mark.parametrize("name", ["pictoworld", "sd", "flux", "sd3"])
def test_every_allowed_token_is_its_own_nearest_and_can_be_seen(name: str) -> None:
    for text_encoder in encoders_of(name):
        vocabulary = Vocabulary(text_encoder)
        tokens = vocabulary.allowed.nonzero()[:, 0]
        assert not set(tokens.tolist()) & set(text_encoder.tokenizer.all_special_ids)
        assert int(tokens.max()) < len(text_encoder.tokenizer)
        found = vocabulary.nearest(vocabulary.table[tokens])
        same = torch.nn.functional.cosine_similarity(vocabulary.table[found], vocabulary.table[tokens])
        assert torch.allclose(same, torch.ones_like(same), atol=1e-5)
        assert all(vocabulary.texts(vocabulary.ids([[int(token)]]))[0] for token in tokens)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_frames_come_on_and_off(world: Vocabulary, data: st.DataObject) -> None:
    known = world.allowed.nonzero()[:, 0].tolist()
    words = data.draw(st.lists(st.lists(st.sampled_from(known), max_size=8), min_size=1, max_size=3))
    ids = world.ids(words)
    assert world.words(ids) == words
    assert ids.shape == world.text_encoder.ids([""] * len(words)).shape
    for row, text in enumerate(world.texts(ids)):
        assert bool(world.survives(ids[row : row + 1])) == bool(
            torch.equal(world.text_encoder.ids([text]), ids[row : row + 1])
        )


def test_a_prompt_is_framed_as_the_pipeline_does_it(world: Vocabulary) -> None:
    ids = world.text_encoder.ids(["a red star on grass"])
    assert torch.equal(world.ids(world.words(ids)), ids)
    assert bool(world.survives(ids))


def test_forbidden_words_are_gone(world: Vocabulary) -> None:
    less = Vocabulary(world.text_encoder, forbidden=["STAR"])
    gone = (world.allowed & ~less.allowed).nonzero()[:, 0].tolist()
    assert gone and all("star" in world.texts(world.ids([[token]]))[0].lower() for token in gone)
    kept = less.allowed.nonzero()[:, 0].tolist()
    assert not any("star" in text.lower() for text in less.texts(less.ids([[token] for token in kept])))
    with pytest.raises(AttackError, match="forbid less"):
        Vocabulary(world.text_encoder, forbidden=less.texts(less.ids([[t] for t in kept])) + ["star"])
    room = world.text_encoder.length
    with pytest.raises(AttackError, match="does not fit"):
        world.ids([[int(world.allowed.nonzero()[0])] * room])
