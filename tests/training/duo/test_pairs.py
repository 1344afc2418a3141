"""Drawing pairs: seeds, the judge's cap, resuming, and folders that cannot be used. D17, D18 and the refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.tiny_pipelines import PIPELINES

import saferedir as sr
from saferedir.training.duo.pair_files import file_hash, read_image_pairs
from saferedir.training.duo.pairs import PairConfig, _away_from, make_pairs

PROMPTS = [("a star", "a circle"), ("the star", "the circle")]
CONFIG: dict[str, Any] = {"count": 3, "steps": 3, "batch": 2, "attempts": 4, "call": {"height": 32, "width": 32}}


def make(folder: Path, name: str = "sd", **changes: Any) -> Any:
    settings = {key: changes.pop(key) for key in list(changes) if key in PairConfig.__dataclass_fields__}
    config = PairConfig(**{**CONFIG, **settings})
    return make_pairs(PIPELINES[name].build(), PROMPTS, folder, concept="star", config=config, **changes)


def hashes(pairs: Any) -> list[str]:
    return [file_hash(path) for pair in pairs for path in (pair.unsafe, pair.safe)]


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_d17_same_seed_same_pictures(name: str, tmp_path: Path) -> None:
    first, again = make(tmp_path / "a", name), make(tmp_path / "b", name)
    assert hashes(first) == hashes(again) and len(set(hashes(first))) == 6
    assert set(hashes(first)).isdisjoint(hashes(make(tmp_path / "c", name, seed=1)))
    assert [pair.prompt for pair in first] == ["a star", "the star", "a star"]


def test_a_negative_prompt_of_the_users_serves_every_picture_of_both_stages(tmp_path: Path) -> None:
    plain = make(tmp_path / "plain", count=2)
    call = {**CONFIG["call"], "negative_prompt": "a circle"}
    pairs = make(tmp_path / "a", count=2, call=call)
    assert set(hashes(plain)).isdisjoint(hashes(pairs)) and len(pairs) == 2
    given = {"negative_prompt": ["grey", "grey"], "negative_prompt_2": ["dull", "dull"], "height": 32}
    assert _away_from(["a star", "the star"], given) == {
        "negative_prompt": ["a star, grey", "the star, grey"], "negative_prompt_2": ["a star, dull", "the star, dull"]
    }  # fmt: skip
    assert _away_from(["a star"], {"height": 32}) == {"negative_prompt": ["a star"]}


def test_d17_one_attempt_each_with_a_judge_that_is_always_content(tmp_path: Path) -> None:
    asked: list[int] = []

    def content(pictures: list[Image.Image]) -> list[bool]:
        asked.append(len(pictures))
        return [sum(asked) <= 3] * len(pictures)  # the concept in the first three, then no more

    make(tmp_path / "a", judge=content, keeps=lambda before, after: [True] * len(after))
    assert sum(asked) == 6
    record = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert all(pair[stage]["attempts"] == 1 for pair in record["pairs"].values() for stage in ("unsafe", "safe"))


def test_d17_a_concept_that_is_never_seen_is_one_sentence(tmp_path: Path) -> None:
    asked: list[int] = []

    def never(pictures: list[Image.Image]) -> list[bool]:
        asked.append(len(pictures))
        return [False] * len(pictures)

    with pytest.raises(sr.GuardConfigError, match=r"the judge found 'star' in none of 8 images"):
        make(tmp_path / "a", judge=never)
    assert sum(asked) == 8  # four for each place of the first batch of two


def test_attempts_count_for_each_place(tmp_path: Path) -> None:
    """A concept that is seldom seen costs draws, not the run: nothing passes in the first six pictures, four being the cap."""
    asked: list[int] = []

    def seldom(pictures: list[Image.Image]) -> list[bool]:
        asked.append(len(pictures))
        return [sum(asked) > 6] * len(pictures) if len(asked) <= 4 else [False] * len(pictures)

    pairs = make(tmp_path / "a", judge=seldom, count=2)
    assert len(pairs) == 2
    record = json.loads((tmp_path / "a" / "manifest.json").read_text())["pairs"]
    assert [pair["unsafe"]["attempts"] for pair in record.values()] == [4, 4]


def test_edits_that_never_lose_the_concept_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(sr.GuardConfigError, match=r"none of 8 edits got rid of 'star'.*raise the strength"):
        make(tmp_path / "a", judge=lambda pictures: [True] * len(pictures))
    with pytest.raises(sr.GuardConfigError, match="none of 8 edits"):
        make(tmp_path / "b", max_difference=0.0)


def test_a_pair_that_never_passes_is_left_out_and_one_is_too_few(tmp_path: Path) -> None:
    calls: list[int] = []

    def only_first(before: list[Image.Image], after: list[Image.Image]) -> list[bool]:
        calls.append(len(after))
        return [len(calls) == 1 and position == 0 for position in range(len(after))]

    with pytest.raises(sr.GuardConfigError, match="holds 1 valid pairs; DUO needs at least 2"):
        make(tmp_path / "a", keeps=only_first)
    record = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert [pair.get("given_up") for pair in record["pairs"].values()] == [None, "safe", "safe"]


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    whole, calls = make(tmp_path / "whole", batch=1), [0]

    def killed(pictures: list[Image.Image]) -> list[bool]:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return [True] * len(pictures)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "a", batch=1, judge=killed)
    kept = sorted((tmp_path / "a" / "unsafe").iterdir())
    assert len(kept) == 2
    stamps = [path.stat().st_mtime_ns for path in kept]
    assert hashes(make(tmp_path / "a", batch=1)) == hashes(whole)
    assert [path.stat().st_mtime_ns for path in kept] == stamps
    kept[0].write_bytes(b"damaged")
    assert hashes(make(tmp_path / "a", batch=1)) == hashes(whole)


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(sr.GuardConfigError, match="made with other settings"):
        make(tmp_path / "a", strength=0.5, steps=4)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    with pytest.raises(sr.GuardConfigError, match="is not empty"):
        make(tmp_path / "b")


def test_a_safety_checker_does_not_blacken_the_pairs(tmp_path: Path) -> None:
    pipe = PIPELINES["sd"].build()

    def blacken(images: Any, clip_input: Any) -> Any:
        raise AssertionError("the checker was asked")

    pipe.safety_checker, before = blacken, vars(pipe).keys()
    make_pairs(pipe, PROMPTS, tmp_path / "a", concept="star", config=PairConfig(**CONFIG))
    assert pipe.safety_checker is blacken and vars(pipe).keys() == before


@pytest.mark.parametrize(
    ("unsafe", "safe", "message"),
    [
        (3, 2, "3 unsafe and 2 safe images; every image needs a partner"),
        (1, 1, "holds 1 valid pairs"),
        (0, 0, "holds 0"),
    ],
)
def test_d18_folders_without_partners(unsafe: int, safe: int, message: str, tmp_path: Path) -> None:
    for side, count in (("unsafe", unsafe), ("safe", safe)):
        (tmp_path / side).mkdir()
        for index in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / side / f"{index}.png")
    with pytest.raises(sr.GuardConfigError, match=message):
        read_image_pairs(tmp_path)
    with pytest.raises(sr.GuardConfigError, match="has no folder 'unsafe'"):
        read_image_pairs(tmp_path / "safe")


def test_d18_members_are_matched_by_sorted_name(tmp_path: Path) -> None:
    for side, names in (("unsafe", ("b.png", "a.png")), ("safe", ("x.png", "y.jpg"))):
        (tmp_path / side).mkdir()
        for name in names:
            Image.new("RGB", (8, 8)).save(tmp_path / side / name)
    found = [(pair.unsafe.name, pair.safe.name) for pair in read_image_pairs(tmp_path)]
    assert found == [("a.png", "x.png"), ("b.png", "y.jpg")]


@pytest.mark.parametrize("change", [{"count": 1}, {"strength": 0.0}, {"strength": 0.1}, {"attempts": 0}])
def test_bad_settings_are_named(change: dict[str, Any]) -> None:
    with pytest.raises(sr.GuardConfigError, match=f"PairConfig.{next(iter(change))}"):
        PairConfig(**{**CONFIG, **change})
