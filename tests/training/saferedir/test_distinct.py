"""Concepts that exclude one another: whose prompts and images are benign for which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import make_pipeline
from tests.training.saferedir.test_many import QUICK, pairs

from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.training.saferedir import many as many_module
from saferedir.training.saferedir.batches import ImageData
from saferedir.training.saferedir.dataset import Pair
from saferedir.training.saferedir.distinct import MOST, Others, other_prompts, telling_words, words_of
from saferedir.training.saferedir.many import train_saferedir_many

FOX = [
    Pair("a fox on grass", "a ball on grass"),
    Pair("the fxo, red", "the ball, red"),
    Pair(None, "a hare on grass"),
    Pair(None, "a red owl"),
]
HARE = [
    Pair("a hare on snow", "a ball on snow"),
    Pair("a hare beside a fox", "a ball beside a fox"),
    Pair("A HARE, and a fxo", "a ball, and a fxo"),
]


def images(count: int) -> ImageData:
    """Images whose every value is their number."""
    frames = torch.arange(count).half().view(count, 1, 1, 1, 1).expand(count, 3, 4, 2, 2)
    return ImageData(frames, PromptEmbeds(torch.zeros(count, 5, 6)), torch.ones(count), torch.tensor([9.0, 5.0, 1.0]))


def test_words_that_tell_of_a_concept_are_those_that_its_safe_prompts_lack() -> None:
    assert telling_words(FOX) == {"fox", "fxo"}
    common = [Pair("a fox", "a ball")] * 30 + [Pair(None, "a fox of glass")]  # one mislabelled line changes nothing
    assert telling_words(common) == {"fox"}


def test_prompts_of_others_are_left_out_where_they_may_ask_for_the_concept_too() -> None:
    both = {"fox": FOX, "hare": HARE}
    chosen = other_prompts(both, {name: telling_words(of) for name, of in both.items()})
    assert chosen == {"fox": ["a hare on snow"], "hare": ["a fox on grass", "the fxo, red"]}


def test_images_of_others_are_benign_and_those_that_may_show_the_concept_are_not_among_them() -> None:
    shown = ["fox", "hare", "hare", "hare"]
    prompts = ["a fox", "a hare on snow", "a hare beside a fox", "a hare, and a fxo"]
    others = Others.of_images(images(4), shown, prompts, {"fox": telling_words(FOX), "hare": frozenset({"hare"})})
    assert others.of("fox").frames[:, 0, 0, 0, 0].tolist() == [1.0]
    assert others.of("hare").frames[:, 0, 0, 0, 0].tolist() == [0.0]
    batch = others.batch("fox", 6, torch.Generator().manual_seed(0))
    assert batch.frames.mean(dim=(1, 2, 3)).round().tolist() == [1.0] * 6 and not batch.label.any()
    alone = Others.of_images(images(1), ["fox"], ["a fox"], {"fox": frozenset({"fox"})})
    assert len(alone.batch("fox", 6, torch.Generator().manual_seed(0)).label) == 0 and len(alone.of("fox").label) == 0


def test_of_very_many_images_some_are_taken_evenly() -> None:
    count = 3 * MOST + 1
    others = Others.of_images(images(count), ["hare"] * count, ["a hare"] * count, {"fox": frozenset({"fox"})})
    rows = others.of("fox").frames[:, 0, 0, 0, 0]
    assert MOST / 2 < len(rows) <= MOST and float(rows[-1]) > 2.9 * MOST


def test_a_guard_is_calibrated_on_the_images_of_all_and_goes_on_after_a_kill(tmp_path: Path, monkeypatch: Any) -> None:
    pipe: Any = make_pipeline()
    both = {"x": pairs("x"), "y": pairs("y")}
    alone = train_saferedir_many(pipe, both, tmp_path / "alone", config=QUICK)

    fit = many_module.fit_rows

    def killed(*given: Any, **more: Any) -> None:
        fit(*given, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(many_module, "fit_rows", killed)
    try:
        train_saferedir_many(pipe, both, tmp_path / "distinct", config=QUICK, distinct=True)
    except KeyboardInterrupt:
        monkeypatch.undo()
    guard = train_saferedir_many(pipe, both, tmp_path / "distinct", config=QUICK, distinct=True)
    for concept in both:
        records = [which.config.calibration[concept] for which in (alone, guard)]
        held_out = records[0]["unsafe"]
        assert records[1]["benign"] == records[0]["benign"] + held_out  # the other's images
        assert records[1]["measured"]["held_out_benign_prompts"] > records[0]["measured"]["held_out_benign_prompts"]
        assert records[1]["false_positive_rate"] == QUICK.false_positive_rate / 2  # of the two rows together


@pytest.mark.parametrize(
    ("asks", "safe", "both"),
    [
        (["狐在树旁", "一只狐"], ["猫在树旁", "一只猫"], "兔和狐"),
        (["\U0001f98a at night"], ["\U0001f431 at night"], "\U0001f430\U0001f98a"),
        (["여우가 있다"], ["고양이가 있다"], "토끼와 여우를"),
    ],
)
def test_words_tell_in_scripts_without_spaces_and_in_emoji(asks, safe, both):
    telling = telling_words([Pair(*texts) for texts in zip(asks, safe, strict=True)])
    assert telling & words_of(both)


def test_a_concept_that_no_word_tells_of_learns_from_no_others():
    pairs = {"a": [Pair("a fox", "a fox")], "b": [Pair("a fox, a hare", "a fox, a cat")]}
    telling = {concept: telling_words(of) for concept, of in pairs.items()}
    assert not telling["a"]
    assert other_prompts(pairs, telling)["a"] == []
