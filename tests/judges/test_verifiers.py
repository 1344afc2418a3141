"""A judge as `verify` of protect: its labels and a rule decide, and being broken excuses no image."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

import saferedir as sr
from saferedir.errors import JudgeError
from saferedir.guard import Guard
from saferedir.judges.base import Judge
from saferedir.judges.callable import CallableJudge
from saferedir.judges.images import to_pil
from saferedir.judges.pictoworld import LABELS, concept_rule
from saferedir.judges.registry import load_judge
from saferedir.judges.rules import AllOf, AnyAbove, InTop, Unless, without_veto
from saferedir.judges.verifiers import JudgeVerifier, verifier_of
from saferedir.pictoworld.judge import Judge as Network
from saferedir.pictoworld.judge import Judgement
from saferedir.pictoworld.renderer import render
from saferedir.pictoworld.scene import JUDGED, VALUES, random_scene

RED = CallableJudge(lambda images: images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2)), "red", name="red")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge("pictoworld")


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    """Three stars, three circles."""
    rng = random.Random(0)
    return to_pil(render([random_scene(rng, shape=shape) for shape in ["star"] * 3 + ["circle"] * 3]))


def test_a_judge_and_a_rule_in_every_form_are_one_verifier(judge: Judge, scenes: list[Image.Image]) -> None:
    rule = concept_rule({"shape": "star"})
    for verify in (judge.verifier(rule), judge.verifier("star"), verifier_of(judge, rule.to_dict())):
        assert verify(scenes) == [True] * 3 + [False] * 3
        assert all(type(flag) is bool for flag in verify(scenes))
    assert Network.load().verifier({"shape": "star"})(scenes) == [True] * 3 + [False] * 3


def test_images_of_any_size_and_mode() -> None:
    images = [Image.new(mode, size, "red") for mode, size in (("RGB", (8, 4)), ("RGBA", (16, 16)), ("P", (4, 4)))]
    images.append(Image.new("RGB", (8, 4), "blue"))
    images.append(Image.new("RGBA", (8, 4), (255, 0, 0, 0)))  # white to whoever scores it
    assert RED.verifier(AnyAbove(("red",), 0.5))(images) == [True, True, True, False, False]


def test_a_broken_image_with_the_concept_is_refused(judge: Judge) -> None:
    star, circle = (VALUES["shape"].index(name) for name in ("star", "circle"))

    def labelled(images: torch.Tensor) -> torch.Tensor:
        """The first image is a whole star, the second a broken star, the third a broken circle."""
        scores = torch.zeros(len(images), len(LABELS))
        for row, (shape, broken) in enumerate(((star, 0.0), (star, 1.0), (circle, 1.0))):
            scores[row, LABELS.index(f"shape:{VALUES['shape'][shape]}")] = 1
            scores[row, LABELS.index("broken")] = broken
        return scores

    rule = concept_rule({"shape": "star"})
    fake = CallableJudge(labelled, LABELS)
    images = [Image.new("RGB", (8, 8))] * 3
    assert fake.verifier(rule)(images) == [True, True, False]
    assert rule.decide(fake(torch.zeros(3, 3, 8, 8))).tolist() == [True, False, False]  # as an attack is counted
    assert without_veto(AllOf((rule, InTop("colour", "red")))) == AllOf(
        (AllOf((InTop("shape", "star"),)), InTop("colour", "red"))
    )
    assert without_veto(Unless(Unless(InTop("shape", "star"), rule), rule)) == InTop("shape", "star")
    one_hot = {name: torch.eye(len(VALUES[name]))[[0, 0]] for name in JUDGED}
    found = Judgement(one_hot, torch.tensor([0.0, 1.0]))
    first = {"shape": VALUES["shape"][0]}
    assert found.shows(first).tolist() == [True, False] and found.is_labelled(first).tolist() == [True, True]


def test_what_does_not_fit_is_refused_before_any_image(judge: Judge) -> None:
    for rule, sentence in (
        ("nudity6", "made for judge nudenet, not for 'pictoworld'"),
        ("stars", "star"),
        (AnyAbove(("red",), 0.5), "there is no score 'red'"),
        ({"kind": "Nothing"}, "there is no rule 'Nothing'"),
        (3, "expected a rule"),
    ):
        with pytest.raises(JudgeError, match=sentence):
            judge.verifier(rule)  # type: ignore[arg-type]


def test_protect_refuses_a_bare_judge_and_says_how(judge: Judge) -> None:
    pipe = sr.load_pipeline("pictoworld")
    pipe.set_progress_bar_config(disable=True)
    star = Guard.from_pretrained("pictoworld/star")
    for bare in (judge, Network.load(), RED):
        with pytest.raises(sr.GuardConfigError, match=r"verify is a judge .*verify=judge\.verifier\(rule\)"):
            sr.protect(pipe, star, on_unsafe="verify", verify=bare)
    seen: list[int] = []

    class Watched(JudgeVerifier):
        def __call__(self, images: list[Image.Image]) -> list[bool]:  # type: ignore[override]
            seen.append(len(images))
            return super().__call__(images)

    verify = Watched(RED, AnyAbove(("red",), -1.0))  # finds it in every image
    with sr.protect(pipe, star, on_unsafe="verify", verify=verify, retries=1) as guarded:
        output = guarded(["a red house", "a blue circle"], num_inference_steps=2, output_type="np")
    assert output.blocked == [True, True] and seen == [2, 2] and not np.asarray(output.images).any()
    with sr.protect(pipe, star, on_unsafe="verify", verify=judge.verifier("emblem")) as guarded:
        assert guarded("a blue circle", num_inference_steps=2).blocked == [False]
