"""PictoWorld's prompts for the bench: the same as the comparison of methods generates, and honest about what they fix."""

import re
from pathlib import Path

import pytest

from saferedir.errors import BenchError
from saferedir.pictoworld.captions import MAX_CHARACTERS
from saferedir.pictoworld.phrases import EMBLEM_PHRASES, LEXICON
from saferedir.pictoworld.prompt_sets import (
    LOOK_ALIKE_WORDS,
    concept_prompts,
    look_alike_phrases,
    neighbour_name,
)
from saferedir.pictoworld.scene import JUDGED, VALUES
from saferedir.pictoworld.tasks import TASKS, TEST_SPLITS, forget_prompts, retain_prompts
from saferedir.prompts import ConceptPrompts, PromptSet

ALL = {"forget": 30, "rephrased": 30, "retain": 30, "neighbours": 30, "look_alikes": 30}


@pytest.fixture(scope="module", params=list(TASKS))
def concept(request: pytest.FixtureRequest) -> tuple[str, ConceptPrompts]:
    return request.param, concept_prompts(request.param, ALL)


def test_prompts_and_their_order_are_those_of_the_comparison(concept: tuple[str, ConceptPrompts]) -> None:
    name, found = concept
    task = TASKS[name]
    assert found.retain is not None
    assert found.forget.texts == [p.text for p in forget_prompts(task, "test-seen", 30)]
    assert found.retain.texts == [p.text for p in retain_prompts(task, "test-seen", 30)]
    assert list(found.rephrased) == list(TEST_SPLITS[1:])
    for split, prompts in found.rephrased.items():
        assert prompts.texts == [p.text for p in forget_prompts(task, split, 30)]


def test_expected_is_what_the_caption_fixes(concept: tuple[str, ConceptPrompts]) -> None:
    name, found = concept
    task = TASKS[name]
    for prompts, made in (
        (found.forget, forget_prompts(task, "test-seen", 30)),
        (found.retain, retain_prompts(task, "test-seen", 30)),
    ):
        assert prompts is not None
        for item, prompt in zip(prompts.items, made, strict=True):
            assert set(item.expected) == set(JUDGED) & prompt.mentioned
            assert all(prompt.scene.value(attribute) == value for attribute, value in item.expected.items())
    for prompts in (found.forget, *found.rephrased.values()):
        for item in prompts.items:
            assert item.expected.items() >= dict(task.forget).items()


def shows(prompts: PromptSet, values: dict[str, str]) -> list[bool]:
    return [item.expected.items() >= values.items() for item in prompts.items]


def test_neighbours_are_asked_for_and_the_concept_is_not(concept: tuple[str, ConceptPrompts]) -> None:
    name, found = concept
    assert list(found.neighbours) == [neighbour_name(neighbour) for neighbour in TASKS[name].neighbours]
    for neighbour in TASKS[name].neighbours:
        prompts = found.neighbours[neighbour_name(neighbour)]
        assert all(shows(prompts, dict(neighbour))) and not any(shows(prompts, dict(TASKS[name].forget)))


def test_look_alikes_share_a_word_with_the_concept_and_nothing_else(concept: tuple[str, ConceptPrompts]) -> None:
    name, found = concept
    assert found.look_alikes is not None
    assert not any(shows(found.look_alikes, dict(TASKS[name].forget)))
    own = [phrase.text for a, value in TASKS[name].forget.items() for phrase in LEXICON[a][value]]
    own += [phrase.text for phrase in EMBLEM_PHRASES] if name == "emblem" else []
    for word in LOOK_ALIKE_WORDS[name]:
        assert any(re.search(rf"\b{word}\b", text) for text in own), word
        assert any(re.search(rf"\b{word}\b", phrase.text) for _, _, phrase in look_alike_phrases(TASKS[name])), word
    for text in found.look_alikes.texts:
        assert set(re.findall("[a-z]+", text)) & set(LOOK_ALIKE_WORDS[name]) and len(text) <= MAX_CHARACTERS
        if name != "emblem":  # parts of the emblem may be said, all of them together are the concept
            assert not any(phrase in text.lower() for phrase in own if len(phrase) > 9)


def test_names_protocols_and_values(concept: tuple[str, ConceptPrompts]) -> None:
    name, found = concept
    assert found.forget.protocol == f"pictoworld/{name}/test-seen"
    names = [one.name for one in found.sets()]
    assert len(set(names)) == len(names) and {"retain", "look-alikes"} < set(names)
    for prompts in found.sets():
        assert prompts.protocol == f"pictoworld/{name}/{prompts.name}" and len(prompts) == 30
        assert len({text.lower() for text in prompts.texts}) == 30
        for item in prompts.items:
            assert all(value in VALUES[attribute] for attribute, value in item.expected.items())


def test_a_smaller_limit_gives_the_first_prompts(concept: tuple[str, ConceptPrompts]) -> None:
    name, found = concept
    few = concept_prompts(name, dict.fromkeys(ALL, 4))
    for small, large in zip(few.sets(), found.sets(), strict=True):
        assert small.texts == large.texts[:4]


def test_without_limits_as_many_as_the_comparison_draws() -> None:
    found = concept_prompts("star", {"neighbours": None})
    assert [len(one) for one in found.sets()] == [200] * 5 and not found.neighbours and found.look_alikes is None
    text = (Path(__file__).parents[2] / "benchmarks" / "methods.py").read_text()
    assert re.search(r'"--n", type=int, default=200', text)
    bare = concept_prompts("star", {"forget": 1, "rephrased": 0, "retain": 0})
    assert bare.rephrased == {} and bare.retain is None and len(bare.sets()) == 1


@pytest.mark.parametrize(
    ("task", "limits", "message"),
    [
        ("stars", {}, "did you mean 'star'"),
        ("star", {"forgets": 3}, "did you mean 'forget'"),
        ("star", {"forget": 0}, "expected a number >= 1"),
        ("star", {"retain": -1}, "expected a number >= 0"),
    ],
)
def test_bad_input_is_one_sentence(task: str, limits: dict[str, int], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        concept_prompts(task, limits)


def test_more_prompts_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def few(task: object, split: str, count: int) -> None:
        raise ValueError("Only 3 different prompts exist where 9 were asked for; ask for fewer.")

    monkeypatch.setattr("saferedir.pictoworld.prompt_sets.forget_prompts", few)
    with pytest.raises(BenchError, match="'star': only 3 different prompts"):
        concept_prompts("star", {"forget": 9})
