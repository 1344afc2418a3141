"""Rules that let no image out, because their guard's last verdict is weak by its own record, are said when the policy is read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import saferedir as sr
from saferedir.cli import app
from saferedir.guards.base import Guard, GuardConfig
from saferedir.guards.saferedir.assessment import weak_at, weak_verdict
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.policy.rules import ConceptRule
from saferedir.policy.weak_verdicts import weak_verdict_texts


def steps(**recalls: float) -> dict[str, Any]:
    return {"by_steps": {name[1:]: {"recall": {"rate": rate}} for name, rate in recalls.items()}}


@pytest.mark.parametrize(
    ("record", "recall"),
    [
        ({"calibration": steps(s1=0.1, s4=0.3, s20=0.4)}, 0.4),
        ({"calibration": steps(s1=0.1, s4=0.3, s20=0.96)}, None),  # long runs can tell
        ({"calibration": steps(s1=0.1, s4=0.97, s20=0.5)}, None),  # some runs can
        ({"calibration": steps(s1=0.2)}, 0.2),
        ({"measured": {"image_recall": 0.7}}, 0.7),
        ({"measured": {"image_recall": 0.95}}, None),
        ({}, None),  # nobody recorded anything
        ({"measured": {"image_recall": 0.7}, "use_image": False}, None),
    ],
)
def test_a_verdict_is_weak_where_no_number_of_steps_makes_it_good(record: dict[str, Any], recall: float | None) -> None:
    config = SafeRedirConfig(concept="star", **record)
    assert weak_verdict(config) == ({} if recall is None else {"star": recall})
    assert all(weak_at(config, count) for count in range(1, 60)) == (recall is not None)


class Unsure(Guard[GuardConfig]):
    """A guard of which some concepts are weak."""

    may_be_unresolved = True
    weak: dict[str, float]

    def weak_verdicts(self) -> dict[str, float]:
        return self.weak


def unsure(**weak: float) -> Unsure:
    guard = Unsure(GuardConfig(concept="many"))
    guard.weak = weak
    return guard


def test_the_sentence_names_concepts_and_recalls_and_what_to_do() -> None:
    whole, good = unsure(fox=0.05, owl=0.5), unsure()
    rules = [
        ConceptRule(concept="pets", guard="a", action="block"),
        ConceptRule(concept="star", guard="b", action="block"),
        ConceptRule(concept="bird", guard="c", action="verify", row="owl"),
        ConceptRule(concept="deer", guard="c", action="verify", row="elk"),
        ConceptRule(concept="cats", guard="d", action="redirect"),
    ]
    guards = [whole, good, whole, whole, whole]
    verified, blocked = weak_verdict_texts(guards, rules)
    assert verified.startswith('Under "verify" every run is refused') and "show bird (50%); use redirect" in verified
    assert "pets (2 of its concepts, at worst fox, 5%)" in blocked and "star" not in blocked and "verify=" in blocked
    assert weak_verdict_texts(guards, rules, verify=lambda images: [False] * len(images)) == []
    whole.image_verifier = object()  # type: ignore[assignment]
    assert weak_verdict_texts(guards, rules) == [
        verified
    ]  # under "block" it looks at the images that the guard cannot tell of
    assert weak_verdict_texts(guards, rules, image_verifiers=False) == [verified, blocked]


POLICY = """
name = "toys"
version = 1
[concepts.star]
guard = "pictoworld/values"
row = "shape-star"
action = "ACTION"
[concepts.dots]
guard = "pictoworld/pointillism"
action = "block"
[profiles.children]
star = "block"
"""


def test_the_command_line_and_protect_say_it_and_it_is_so(tmp_path: Path) -> None:
    path = tmp_path / "toys.toml"

    def check(action: str) -> str:
        path.write_text(POLICY.replace("ACTION", action))
        result = CliRunner().invoke(app, ["policy", "check", str(path)])
        assert result.exit_code == 0
        return " ".join(result.output.split())

    assert check("redirect").count("the last verdict finds too few") == 1
    assert '[profiles.children]: Under "block" every image is blocked' in check("redirect")
    output = check("block")
    assert output.count("the last verdict finds too few") == 1 and "star (35%)" in output and "[profiles" not in output
    pipe = sr.load_pipeline("pictoworld")
    pipe.set_progress_bar_config(disable=True)
    with pytest.warns(UserWarning, match=r'"block" every image is blocked.*star \(35%\)'):
        safe = sr.protect(pipe, policy=path)
    with safe:
        assert safe(["a blue heart on snow"], num_inference_steps=4).blocked == [True]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sr.protect(pipe, policy=path, verify=lambda images: [False] * len(images)).detach()
    assert not [warning for warning in caught if "every image" in str(warning.message)]


def test_protect_without_a_policy_says_it_too() -> None:
    pipe = sr.load_pipeline("pictoworld")
    guard = sr.Guard.from_pretrained("pictoworld/values")
    with pytest.warns(
        UserWarning, match=r'"block" every image is blocked.*show pictoworld/values \(\d+ of its concepts'
    ):
        sr.protect(pipe, guard, on_unsafe="block").detach()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sr.protect(pipe, guard).detach()
        sr.protect(pipe, guard, on_unsafe="block", verify=lambda images: [False] * len(images)).detach()
    assert not [warning for warning in caught if "every image" in str(warning.message)]
