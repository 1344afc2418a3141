"""PictoWorld's two judges behind the contract say exactly what they say by themselves."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from saferedir.errors import JudgeError
from saferedir.judges.pictoworld import LABELS, PictoWorldJudge, PictoWorldTemplateJudge, concept_rule
from saferedir.judges.presets import PRESETS
from saferedir.judges.registry import load_judge
from saferedir.pictoworld import template_judge
from saferedir.pictoworld.judge import Judge as Network
from saferedir.pictoworld.renderer import render
from saferedir.pictoworld.scene import JUDGED, VALUES, random_scene
from saferedir.pictoworld.tasks import TASKS


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Stars, emblems, other scenes, blends of two scenes, and noise: (48, 3, 64, 64)."""
    rng = random.Random(0)
    fixed = [dict(task.forget) for task in TASKS.values()] * 4 + [{}] * 20
    rendered = render([random_scene(rng, **values) for values in fixed])
    blends = (rendered[:8] + rendered[12:20]) / 2
    noise = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return torch.cat([rendered, blends, noise])


CONCEPTS = [*(dict(task.forget) for task in TASKS.values()), {}, *({"colour": v} for v in VALUES["colour"])]


def test_the_rule_agrees_with_the_cnn_s_own_judgement(images: Tensor) -> None:
    own, scores = Network.load().judge(images), PictoWorldJudge()(images)
    for forget in CONCEPTS:
        assert torch.equal(concept_rule(forget).decide(scores), own.shows(forget)), forget
    for attribute in JUDGED:
        values, columns = scores.group(attribute)
        assert values == VALUES[attribute]
        assert torch.equal(columns, own.probabilities[attribute])
    assert torch.equal(scores.column("broken"), own.broken)
    assert own.is_broken.any() and not own.is_broken.all()


def test_the_rule_agrees_with_the_template_judge_s(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_judge, "_SHIFTS", (0.0,))  # fewer templates: quicker, and no matter for agreement
    fresh = template_judge._templates.__wrapped__  # those of the process are for all other tests
    monkeypatch.setattr(template_judge, "_templates", fresh)
    few, judge = torch.cat([images[2:3], images[-1:]]), PictoWorldTemplateJudge()
    own, scores = judge.templates.judge(few), judge(few)
    assert judge.facts()["weights"] == "none"
    for forget in CONCEPTS:
        assert torch.equal(concept_rule(forget).decide(scores), own.shows(forget)), forget


@pytest.mark.parametrize("name", list(TASKS))
def test_presets_find_the_concept_in_renders(name: str, images: Tensor) -> None:
    preset = PRESETS[name]
    decided = preset.rule.decide(preset.load_judge()(images[:12]))
    concerned = [place % len(TASKS) == list(TASKS).index(name) for place in range(12)]
    assert [bool(one) for one, is_concept in zip(decided, concerned, strict=True) if is_concept] == [True] * 4
    assert preset.judges == ("pictoworld", "pictoworld-template")


def test_features_are_those_before_the_heads_and_other_sizes_are_resized(images: Tensor) -> None:
    judge = PictoWorldJudge()
    features = judge.features(images[:3])
    assert features.shape == (3, 128)
    assert torch.equal(features, Network.load().features(images[:3]))
    larger = images[:3].repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(judge(larger).values, judge(images[:3]).values, atol=1e-5, rtol=0)


def test_facts_name_the_weights() -> None:
    facts = load_judge("pictoworld").facts()
    assert facts["id"] == "pictoworld" and len(facts["weights"]) == 16 and facts["channels"] == "RGB"
    assert len(LABELS) == len(set(LABELS)) == sum(len(VALUES[name]) for name in JUDGED) + 1


@pytest.mark.parametrize(
    ("forget", "words"),
    [
        ({"size": "small"}, "read no attribute 'size'; known: shape"),
        ({"shape": "stra"}, "'shape' has no value 'stra'; known: circle"),
    ],
)
def test_an_unknown_attribute_or_value_is_one_sentence(forget: dict[str, str], words: str) -> None:
    with pytest.raises(JudgeError, match=words):
        concept_rule(forget)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, 64, 64), r"shape \(3, 64, 64\), expected \(B, 3, H, W\)"),
        (torch.full((1, 3, 64, 64), 255.0), "divide 8-bit values by 255"),
        (torch.full((1, 3, 64, 64), torch.nan), "must lie in"),
    ],
)
def test_images_that_are_none_are_one_sentence(images: Tensor, words: str) -> None:
    with pytest.raises(JudgeError, match=words):
        PictoWorldJudge()(images)


def test_a_wrong_weights_path_is_one_sentence() -> None:
    with pytest.raises(JudgeError, match="there is no weights file nowhere"):
        PictoWorldJudge(weights="nowhere")
