"""Policies as data: what a file may say, that profiles and requests are only ever stricter, what a change lets through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import saferedir as sr
from saferedir.errors import GuardConfigError
from saferedir.policy.rules import ACTIONS, ConceptRule, Policy

TOML = """
name = "shop"
version = 1
[categories.logos]
action = "verify"
[concepts.star]
guard = "pictoworld/star"
category = "logos"
grades = { low = 3.0, high = 20.0 }
block_at = "high"
[concepts.dots]
guard = "pictoworld/pointillism"
[profiles.children]
logos = "block"
"""


def policy(**changes: Any) -> Policy:
    rule = {"guard": "pictoworld/star", "category": "logos", **changes}
    return Policy.from_dict({"name": "p", "version": 1, "concepts": {"star": rule, "dots": {"guard": "dots"}}})


def test_a_file_says_concepts_categories_and_profiles(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text(TOML)
    shop = sr.Policy.from_file(tmp_path / "shop.toml")
    assert [(rule.concept, rule.action) for rule in shop.concepts] == [("star", "verify"), ("dots", "redirect")]
    assert [rule.action for rule in shop.for_profile("children").concepts] == ["block", "redirect"]
    (tmp_path / "shop.json").write_text(json.dumps(shop.to_dict()))
    again = sr.Policy.from_file(tmp_path / "shop.json")
    assert again == shop and again.fingerprint == shop.fingerprint != policy().fingerprint
    assert shop.changes(again) == []


def test_a_policy_without_later_fields_keeps_its_fingerprint(tmp_path: Path) -> None:
    """The value is that of the first version that had policies (commit f150bbe), in which rules had no row, anchor or allow."""
    (tmp_path / "shop.toml").write_text(TOML)
    shop = Policy.from_file(tmp_path / "shop.toml")
    assert shop.fingerprint == "ffbac7c917a6424a4f32f1892fe5f4894ce8e4def7bf3aecef98cd146fdf5ece"
    for changed in ({"row": "star"}, {"anchor": "a ring"}, {"allow": ["a starfish"]}):
        rule = {**shop.concepts[1].to_dict(), **changed}
        other = Policy.from_dict({**shop.to_dict(), "concepts": {**shop.to_dict()["concepts"], "dots": rule}})
        assert other.fingerprint != shop.fingerprint and other.concepts[1].to_dict() == rule
        assert [change.what for change in shop.changes(other)] == [f"dots.{next(iter(changed))}"]


def test_a_guards_folder_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "dots").mkdir()
    values = {"name": "p", "version": 1, "concepts": {"dots": {"guard": "dots"}}}
    assert Policy.from_dict(values, folder=tmp_path).concepts[0].guard == str(tmp_path / "dots")
    assert Policy.from_dict(values).concepts[0].guard == "dots"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name = ", "cannot be read as a policy"),
        ("version = 1\nname = 'x'", "has no concepts"),
        ("name = 'x'\nversion = 0\n[concepts.a]\nguard = 'g'", "version is 0"),
        ("name = 'x'\nversion = true\n[concepts.a]\nguard = 'g'", "expected a whole number"),
        ("name = 'x'\nversion = 1\n[concepts.a]", r"\[concepts.a\] needs a guard"),
        ("name = 'x'\nversion = 1\n[concepts.a]\nguard = 'g'\nactions = 'block'", "has 'actions'; known keys"),
        ("name = 'x'\nversion = 1\n[concepts.a]\nguard = 'g'\naction = 'warn'", "expected one of off, log, redirect"),
        ("name = 'x'\nversion = 1\n[concepts.a]\nguard = 'g'\ngrades = {b = 2, a = 1}", "higher than the one before"),
        ("name = 'x'\nversion = 1\n[concepts.a]\nguard = 'g'\nblock_at = 'high'", "one of the grades"),
        ("name = 'x'\nversion = 1\n[categories.logos]\n[concepts.a]\nguard = 'g'\ncategory = 'logo'", "expected one of logos"),
        ("name = 'x'\nversion = 1\n[categories.logos]\n[concepts.a]\nguard = 'g'", "used by no concept"),
        ("name = 'x'\nversion = 1\n[concepts.a]\nguard = 'g'\ncategory = ['b']", "category"),
        ("name = 'x'\nversion = 1\n[concepts.a]\nguard = 'g'\n[profiles.p]\nb = 'block'", "there is no concept or category"),
        ("name = 'x'\nversion = 1\n[concepts.a]\nguard = 'g'\n[profiles.p]\na = 'log'", r"\[profiles.p\]: 'a' is at redirect"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(GuardConfigError, match=sentence) as error:
        Policy.from_file(tmp_path / "p.toml")
    assert str(tmp_path / "p.toml") in str(error.value)


@given(st.sampled_from(ACTIONS), st.dictionaries(st.sampled_from(["*", "logos", "dots"]), st.sampled_from(ACTIONS)))
def test_nothing_that_is_asked_for_makes_a_policy_weaker(action: str, asked: dict[str, str]) -> None:
    before = policy(action=action)
    try:
        after = before.stricter(asked)
    except GuardConfigError as error:
        assert "is weaker" in str(error)
        return
    pairs = zip(before.concepts, after.concepts, strict=True)
    assert all(ACTIONS.index(new.action) >= ACTIONS.index(old.action) for old, new in pairs)
    assert not any(change.is_weaker for change in before.changes(after))
    assert any(change.is_weaker for change in after.changes(before)) == bool(after.changes(before))


def test_grades_name_the_higher_score_and_block_from_one_on() -> None:
    rule = ConceptRule(concept="a", guard="g", grades={"low": 1.0, "high": 5.0}, block_at="high")
    assert [rule.grade(score) for score in (None, 0.9, 1.0, 5.0)] == ["", "", "low", "high"]
    assert [rule.blocks(grade) for grade in ("", "low", "high")] == [False, False, True]


def test_changes_that_let_more_through_are_marked() -> None:
    graded = {"grades": {"high": 5.0}, "block_at": "high"}
    before = policy(action="verify", **graded)
    weaker = [
        policy(action="redirect", **graded),
        policy(action="verify"),
        policy(action="verify", grades={"high": 6.0}, block_at="high"),
        Policy.from_dict({"name": "p", "version": 1, "concepts": {"dots": {"guard": "dots"}}}),
    ]
    assert all(any(change.is_weaker for change in before.changes(after)) for after in weaker)
    assert not any(change.is_weaker for after in weaker[:3] for change in after.changes(before))


def test_a_concept_that_is_off_can_be_taken_out() -> None:
    def shop(action: str, concepts: tuple[str, ...] = ("star", "dots"), **profiles: Any) -> Policy:
        rules = {"star": {"guard": "g", "action": action}, "dots": {"guard": "h"}}
        return Policy.from_dict(
            {"name": "p", "version": 1, "concepts": {name: rules[name] for name in concepts}, "profiles": profiles}
        )

    rest = shop("off", ("dots",), all={"dots": "block"})
    assert not any(change.is_weaker for change in shop("off", all={"dots": "block"}).changes(rest))
    assert any(change.is_weaker for change in shop("log", all={"dots": "block"}).changes(rest))
    assert any(change.is_weaker for change in shop("off", all={"*": "block"}).changes(rest))


def test_a_profile_that_loses_a_concept_by_its_category_is_weaker() -> None:
    profile = {"profiles": {"children": {"logos": "block"}}}

    def shop(category: str, *, version: int = 1, order: tuple[str, ...] = ("star", "dots")) -> Policy:
        concepts = {"star": {"guard": "g", "category": category}, "dots": {"guard": "h", "category": "logos"}}
        return Policy.from_dict(
            {"name": "p", "version": version, "concepts": {k: concepts[k] for k in order}, **profile}
        )

    (category, of_profile) = shop("logos").changes(shop(""))
    assert category.what == "star.category" and of_profile.what == "profile children" and of_profile.is_weaker
    assert [change.what for change in shop("logos").changes(shop("logos", version=2))] == ["version"]
    assert [change.what for change in shop("logos").changes(shop("logos", order=("dots", "star")))] == ["order"]
    other = Policy.from_dict({"name": "p", "version": 1, "concepts": {"star": {"guard": "i", "category": "logos"}}})
    assert any(change.what == "star.guard" and change.is_weaker for change in shop("logos").changes(other))
