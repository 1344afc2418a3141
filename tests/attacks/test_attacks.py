"""What every attack keeps: nothing but the texts may change, the same call gives the same prompts, and names are taken once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from saferedir.attacks.base import Attack, AttackConfig, is_static
from saferedir.attacks.registry import ATTACKS, register
from saferedir.errors import SaferedirError
from saferedir.prompts import ConceptPrompts, PromptItem, PromptSet

FORGET = PromptSet("forget", (PromptItem("a star", seed=3), PromptItem("two stars", seed=4)), "own")
SYNONYMS = replace(FORGET, name="synonyms", items=tuple(replace(item, text=f"{item.text}s") for item in FORGET.items))
CONCEPT = ConceptPrompts(FORGET, {"synonyms": SYNONYMS})


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if is_static(attack)])
def test_it_changes_nothing_but_texts_and_repeats_itself(name: str) -> None:
    attack = ATTACKS[name]()
    found = attack.prompts(CONCEPT)
    assert found and found == ATTACKS[name]().prompts(CONCEPT)
    for prompts in found.values():
        assert [replace(item, text="") for item in prompts.items] == [replace(item, text="") for item in FORGET.items]
        assert all(item.text for item in prompts.items)


@pytest.mark.parametrize("name", ATTACKS)
def test_it_says_what_the_attacker_knows_and_sends(name: str) -> None:
    attack = ATTACKS[name]
    assert attack.name == name and attack.rung
    assert attack.knowledge in ("T1", "T2", "T3", "T3g") and attack.channel in (
        "text",
        "embeddings",
        "latents",
        "image",
    )


def test_no_attack_asks_in_the_given_words_and_phrasings_in_the_others() -> None:
    assert ATTACKS["none"]().prompts(CONCEPT) == {"forget": FORGET}
    assert ATTACKS["phrasings"]().prompts(CONCEPT) == {"synonyms": SYNONYMS}
    assert ATTACKS["phrasings"]().prompts(ConceptPrompts(FORGET, {})) == {}


def test_a_name_is_taken_once() -> None:
    class Again(Attack[AttackConfig]):
        name = "none"

    with pytest.raises(SaferedirError, match="'none' is registered already"):
        register(Again)  # type: ignore[type-abstract]
