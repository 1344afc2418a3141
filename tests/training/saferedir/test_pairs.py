"""Pairs from a word: English, matching, lengths, captions, leaks, paraphrases, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from saferedir import GuardError
from saferedir.training.saferedir.dataset import read_pairs, write_pairs
from saferedir.training.saferedir.pairs.build import build_pairs
from saferedir.training.saferedir.pairs.files import PROMPT_COLUMNS, read_prompts, read_synonyms
from saferedir.training.saferedir.pairs.lengths import Lengths, load_lengths
from saferedir.training.saferedir.pairs.plan import PairPlan
from saferedir.training.saferedir.pairs.templates import BANKS, KINDS, open_slots
from saferedir.training.saferedir.pairs.text import (
    LeakIndex,
    agree,
    fill,
    find_mentions,
    has_negation,
    normalise,
    parse_term,
    plural,
    substitute,
)

CONCEPTS = {
    "object": ("umbrella", "lantern"),
    "style": ("Van Gogh", "impressionism"),
    "person": ("Ada Lovelace", "a carpenter"),
    "attribute": ("made of glass", "wooden"),
}


def plan(**changes: Any) -> PairPlan:
    return PairPlan(**{"concept": "umbrella", "anchors": ("lantern",), "count": 60, **changes})


# ---------------------------------------------------------------------- English


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("a umbrella", "an umbrella"), ("An star", "A star"), ("a hour", "an hour"), ("an unicorn", "a unicorn"),
        ("an European", "a European"), ("a SUV", "an SUV"), ("an UFO", "a UFO"), ("a unimportant", "an unimportant"),
        ("an one-eyed cat and a owl", "a one-eyed cat and an owl"), ("a égg", "an égg"),
    ],
)  # fmt: skip
def test_articles_agree_with_the_sound(text: str, right: str) -> None:
    assert agree(text) == right


@pytest.mark.parametrize(
    ("one", "many"),
    [("star", "stars"), ("toy box", "toy boxes"), ("berry", "berries"), ("toy", "toys"), ("wolf", "wolves"),
     ("sunglasses", "sunglasses"), ("glass", "glasses"), ("bus", "buses"), ("cats", "cats")],
)  # fmt: skip
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many


@pytest.mark.parametrize(
    ("text", "words", "article"),
    [
        ("umbrella", "umbrella", "a"),
        ("An  umbrella", "umbrella", "a"),
        ("the Eiffel Tower", "Eiffel Tower", "the"),
        ("Ada Lovelace", "Ada Lovelace", ""),
        ("some water", "water", ""),
        ("sunglasses", "sunglasses", ""),
        ("SUV", "SUV", "a"),
        ("T-shirt", "T-shirt", "a"),
        ("iPhone", "iPhone", "a"),
    ],
)
def test_articles_are_read_from_what_was_written(text: str, words: str, article: str) -> None:
    term = parse_term(text)
    assert (term.text, term.article) == (words, article)


@pytest.mark.parametrize(
    ("context", "concept", "filled"),
    [
        ("{a} red {x} and {xs}", "umbrella", "a red umbrella and umbrellas"),
        ("draw {a} {x}", "umbrella", "draw an umbrella"),
        ("{a} red {x}", "the Eiffel Tower", "the red Eiffel Tower"),
        ("{a} {x} reading", "Ada Lovelace", "Ada Lovelace reading"),
        ("two red {xs}", "sunglasses", "two red sunglasses"),
        ("two red {xs}", "the Acme logo", "two red Acme logos"),
    ],
)
def test_templates_are_filled(context: str, concept: str, filled: str) -> None:
    assert fill(context, parse_term(concept)) == filled


def test_an_attribute_stands_before_or_behind_its_noun() -> None:
    assert fill("{a} {x} ball", parse_term("orange", is_noun=False)) == "an orange ball"
    assert fill("{a} {x} ball on sand", parse_term("made of glass", is_noun=False)) == "a ball made of glass on sand"


# ---------------------------------------------------------------------- finding and replacing


def test_normalisation_sees_through_case_accents_lookalikes_and_invisible_characters() -> None:
    assert normalise("Vän-Gоgh’s  ＳＴ\u200bАR!") == ["van", "gogh", "s", "star"]  # Cyrillic о and А


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a star", 1), ("STARS, everywhere", 1), ("a stаr", 1), ("a starfish", 0), ("a rising-star, a star's light", 2),
        ("vangogh and Van-Gogh", 2), ("start", 0), ("a star fruit", 0), ("a star fruit and a star", 1),
    ],
)  # fmt: skip
def test_mentions_respect_word_boundaries_plurals_and_shields(text: str, count: int) -> None:
    assert len(find_mentions(text, ["star", "van gogh"], shields=["star fruit"])) == count


@pytest.mark.parametrize(
    ("text", "concept", "anchor", "right"),
    [
        ("An umbrella on a table.", "umbrella", "box", "A box on a table."),
        ("two umbrellas", "umbrella", "box", "two boxes"),
        ("Umbrellas by the sea", "umbrella", "lantern", "Lanterns by the sea"),
        ("a photo of Pikachu", "Pikachu", "orange cat", "a photo of an orange cat"),
        ("the Eiffel Tower at night", "the Eiffel Tower", "oil lamp", "the oil lamp at night"),
        ("a photo of the cat", "cat", "Ada Lovelace", "a photo of Ada Lovelace"),
        ("a red umbrella, an umbrella", "umbrella", "lamp", "a red lamp, a lamp"),
        ("my umbrella", "umbrella", "the Eiffel Tower", "my Eiffel Tower"),
    ],
)
def test_substitution_keeps_the_sentence_in_order(text: str, concept: str, anchor: str, right: str) -> None:
    source, target = parse_term(concept), parse_term(anchor)
    assert substitute(text, find_mentions(text, [source.text]), [source], target) == right


def test_negation_is_recognised() -> None:
    assert all(map(has_negation, ("no star", "a sky without stars", "it isn't a star", "it isn’t")))
    assert not any(map(has_negation, ("a notebook", "a knot", "a note")))


# ---------------------------------------------------------------------- the template banks


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_many_templates_of_different_length(kind: str) -> None:
    bank = BANKS[kind]
    assert len(set(bank.templates)) == len(bank.templates) >= 60
    assert all(name in bank.slots for template in bank.templates for name in open_slots(template))
    assert all("{x}" in template or "{xs}" in template for template in bank.templates)
    assert not any(has_negation(text) for text in (*bank.templates, *sum(bank.slots.values(), ())))
    assert len({len(template.split()) for template in bank.templates}) >= 7
    contexts = list(bank.contexts(random.Random(0)))
    assert len(contexts) == bank.size == len(set(contexts))


# ---------------------------------------------------------------------- building


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_differ_in_the_concept_only_and_are_the_same_for_a_seed(kind: str, tmp_path: Path) -> None:
    concept, anchor = CONCEPTS[kind]
    wish = plan(concept=concept, anchors=(anchor,), kind=kind, count=400)
    built = build_pairs(wish)
    pairs = [pair for pair in built.rows if pair.unsafe]
    benign = [pair for pair in built.rows if not pair.unsafe]
    assert len(pairs) == 400 and len(benign) == 267 == built.report.benign
    assert len({tuple(normalise(pair.unsafe or "")) for pair in pairs}) == 400
    assert all(wish.mentions(pair.unsafe or "") and not wish.mentions(pair.safe) for pair in pairs)
    assert not any(wish.mentions(pair.safe) or has_negation(pair.safe) for pair in benign)
    assert build_pairs(wish) == built
    assert build_pairs(plan(concept=concept, anchors=(anchor,), kind=kind, count=400, seed=1)).rows != built.rows
    write_pairs(built.rows, tmp_path / "pairs.jsonl")
    assert tuple(read_pairs(tmp_path / "pairs.jsonl")) == built.rows


def test_the_concepts_own_word_never_comes_in_through_a_slot() -> None:
    wish = plan(concept="red", anchors=("blue",), kind="attribute", count=200)
    assert not any(wish.mentions(pair.safe) for pair in build_pairs(wish).rows)


def test_a_synonym_that_contains_the_concepts_word_is_counted() -> None:
    names = ("crescent", "crescent moon", "half moon", "lunar sickle")
    wish = plan(concept="moon", anchors=("circle",), synonyms=names, count=60)
    for share in (0.0, 0.4, 1.0):
        built = build_pairs(dataclasses.replace(wish, synonym_share=share))
        unsafe = [str(pair.unsafe).lower() for pair in built.rows if pair.unsafe]
        said = sum(any(name in text for name in names) for text in unsafe)
        assert built.report.with_synonym == said and (share not in (0, 1) or said == 60 * share)


def test_synonyms_and_near_concepts_take_their_shares() -> None:
    wish = plan(synonyms=("parasol", "brolly"), near=("beach umbrella", "tent"), count=300, synonym_share=0.4)
    built = build_pairs(wish)
    assert 0.3 < built.report.with_synonym / 300 < 0.5
    assert built.report.hard_negatives == 100  # half of 200
    shielded = [pair for pair in built.rows if not pair.unsafe and "beach umbrella" in pair.safe.lower()]
    assert shielded and not any(wish.mentions(pair.safe) for pair in shielded)


def test_names_never_stand_in_the_plural() -> None:
    rows = build_pairs(plan(concept="the Eiffel Tower", count=300, benign=0)).rows
    assert not any(word in str(pair.unsafe).lower() for pair in rows for word in ("two", "row of", "pile of", "many"))


def test_captions_beyond_the_number_asked_for_are_counted() -> None:
    built = build_pairs(
        plan(count=2, benign=2), captions=[f"{n} umbrellas" for n in "abc"] + [f"cat {n}" for n in "abc"]
    )
    assert built.report.refused["captions beyond the number asked for"] == 2 and len(built.rows) == 4


def test_among_several_anchors_the_one_of_equal_length_is_taken() -> None:
    wish = plan(concept="Van Gogh", anchors=("cubism", "art deco"), kind="style", padding=False)
    report = build_pairs(wish).report
    assert (report.same_length, report.padded, report.unit) == (60, 0, "words")


class WordTokenizer:
    """One token a word, as far as `Lengths` asks."""

    model_max_length = 77

    def __call__(self, text: str, **_: Any) -> dict[str, list[str]]:
        return {"input_ids": text.split()}


@pytest.mark.parametrize(
    "changes",
    [
        {"concept": "Van Gogh", "anchors": ("impressionism",), "kind": "style"},
        {"concept": "Van Gogh", "anchors": ("impressionism",), "kind": "style", "near": ("Gauguin", "Cezanne")},
        {"concept": "oil lamp", "anchors": ("circle",), "synonyms": ("lantern", "glass oil lamp")},
        {"concept": "spiral logo", "anchors": ("plain label", "box")},
        {"concept": "piano player", "anchors": ("nurse",), "kind": "person", "benign": 100},
        {"concept": "made of glass", "anchors": ("wooden",), "kind": "attribute"},
        {"concept": "dark green", "anchors": ("blue",), "kind": "attribute"},
    ],
    ids=lambda changes: changes["concept"],
)
@pytest.mark.parametrize("unit", ["words", "tokens"])
def test_no_word_but_the_concepts_and_the_anchors_tells_the_sides_apart(changes: dict[str, Any], unit: str) -> None:
    wish = plan(count=400, **changes)
    built = build_pairs(wish, lengths=Lengths(WordTokenizer() if unit == "tokens" else None))
    pairs = [pair for pair in built.rows if pair.unsafe]
    sides = {
        "unsafe": [pair.unsafe or "" for pair in pairs],
        "safe": [pair.safe for pair in pairs],
        "benign": [pair.safe for pair in built.rows if not pair.unsafe],
    }
    shares = {side: words_of(texts) for side, texts in sides.items()}
    terms = {word for text in (wish.concept, *wish.synonyms, *wish.anchors) for word in normalise(text)}
    grammar = {"a", "an", "the", *map(plural, terms)}
    told_by = {
        word: gap
        for word in {*shares["unsafe"], *shares["safe"]} - terms - grammar
        if (gap := abs(shares["unsafe"][word] - shares["safe"][word])) > 0.01
    }
    assert not told_by
    rows = {"unsafe": 400, "safe": 400, "benign": wish.lines}
    with_filler = [built.report.with_filler[side] / rows[side] for side in rows]
    assert max(with_filler) - min(with_filler) < 0.02
    fillers = {word for text in BANKS[wish.kind].padding for word in normalise(text)} - terms
    if unit == "words":
        assert built.report.padded == 0 == max(with_filler)
    elif wish.concept not in ("made of glass", "spiral logo"):  # it stands behind its noun; an anchor is as long
        assert min(with_filler) > 0.1 and built.report.padded > 30
        assert all(abs(shares["benign"][word] - shares["safe"][word]) < 0.03 for word in fillers)


def words_of(texts: Sequence[str]) -> Counter[str]:
    """For each word the share of the texts that say it."""
    found = Counter(word for text in texts for word in set(normalise(text)))
    return Counter({word: number / len(texts) for word, number in found.items()})  # type: ignore[misc]


def test_neutral_words_even_half_of_the_lengths_out_unless_that_is_unwanted_or_the_term_is_a_name() -> None:
    lengths = Lengths(WordTokenizer())
    two, one = plan(concept="oil lamp"), plan(concept="oil lamp", padding=False)
    report = build_pairs(two, lengths=lengths).report
    assert report.padded == report.same_length == 30  # the other half pays the words back
    assert build_pairs(one, lengths=lengths).report.same_length == 0
    named = build_pairs(plan(concept="Ada King Lovelace", anchors=("Boole",), kind="person"), lengths=lengths)
    assert named.report.padded == 0 and named.report.same_length == 0


def test_anchors_on_both_sides_of_the_concepts_length_even_all_pairs_out() -> None:
    wish = plan(concept="oil lamp", anchors=("box", "tall paper lantern"))
    report = build_pairs(wish, lengths=Lengths(WordTokenizer())).report
    assert report.padded == report.same_length == 60
    assert report.with_filler["unsafe"] == report.with_filler["safe"] == 30


def test_with_a_tokenizer_lengths_are_tokens_and_no_prompt_is_cut() -> None:
    lengths = load_lengths("pictoworld")
    built = build_pairs(plan(concept="star", anchors=("circle",), count=200), lengths=lengths)
    assert built.report.unit == "tokens" and built.report.same_length == 200
    assert lengths.limit == 32
    assert all(lengths.count(text) <= 32 for pair in built.rows for text in (pair.unsafe, pair.safe) if text)
    # words that this text encoder knows come first
    assert sum(lengths.is_plain(pair.safe.rstrip(".")) for pair in built.rows) > 0.8 * len(built.rows)


# ---------------------------------------------------------------------- captions, leaks, paraphrases


def test_captions_with_the_concept_become_pairs_the_others_benign_lines() -> None:
    captions = ["An old Umbrella.", "two parasols in the rain", "a cat", "a dog", "A cat!", "a street with no umbrella"]
    built = build_pairs(plan(synonyms=("parasol",)), captions=captions)
    rows = {(pair.unsafe, pair.safe) for pair in built.rows}
    assert {("An old Umbrella.", "An old lantern."), ("two parasols in the rain", "two lanterns in the rain")} < rows
    assert (None, "a dog") in rows and len({(None, "a cat"), (None, "A cat!")} & rows) == 1
    assert not any("no umbrella" in text.lower() for row in rows for text in row if text)
    assert built.report.origins["captions"] == 4
    assert built.report.refused["negation"] == 1 and built.report.refused["duplicates"] == 1
    assert len(built.rows) == 100


def test_leaks_into_the_evaluation_are_replaced_and_reported() -> None:
    first = build_pairs(plan())
    tested = [str(first.rows[0].unsafe).upper() + "!", first.rows[1].safe, first.rows[-1].safe]
    built = build_pairs(plan(), evaluation=tested)
    index = LeakIndex(tested)
    assert not any(index.match(text) for pair in built.rows for text in (pair.unsafe, pair.safe) if text)
    assert len(built.rows) == len(first.rows)
    assert built.report.refused["leaks"] >= 2 and built.report.leaks[0][1] in tested


def test_near_copies_are_found_from_nine_tenths_of_the_words() -> None:
    words = list(string.ascii_lowercase[:20])
    index = LeakIndex([" ".join(words), "a red star"])
    assert index.match(" ".join([*words[1:], "z"])) is not None  # 19 of 21
    assert index.match(" ".join([*words[2:], "z"])) is None  # 18 of 21
    assert index.match("Star, a red") == "a red star" and index.match("a blue star") is None
    assert LeakIndex([]).match("a red star") is None


def test_paraphrases_are_kept_only_if_they_name_the_concept_as_the_original_does() -> None:
    asked: list[str] = []

    def paraphrase(prompts: Sequence[str]) -> list[str]:
        asked.extend(prompts)
        ends = ["a lost thing", "", "there is not one umbrella"]
        return [ends[i] if i < 3 else f"behold: {prompt}" for i, prompt in enumerate(prompts)]

    wish = plan(count=100, benign=50)
    built = build_pairs(wish, paraphrase=paraphrase)
    assert len(asked) == 20 + 10 and len(built.rows) == 150
    said = [pair for pair in built.rows if "behold" in pair.safe]
    assert sum(pair.unsafe is not None for pair in said) == 17 and len(said) == 17 + 7
    assert built.report.origins["paraphrases"] == 17 + 7 + 1  # "a lost thing" is a benign line, too
    assert all(wish.mentions(pair.unsafe or "umbrella") and not wish.mentions(pair.safe) for pair in built.rows)


def make_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *string.ascii_lowercase, "umbrella"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


@pytest.mark.parametrize("kind", ["text-to-text", "causal"])
def test_tiny_random_text_models_paraphrase_reproducibly(kind: str, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

    from saferedir.training.saferedir.pairs.paraphrase import load_paraphraser

    size = make_tokenizer(tmp_path)
    ends = {"pad_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    if kind == "causal":
        model: Any = GPT2LMHeadModel(
            GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, **ends)
        )
    else:
        model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=size,
                d_model=16,
                d_kv=8,
                d_ff=16,
                num_layers=1,
                num_heads=2,
                decoder_start_token_id=0,
                **ends,
            )
        )
    model.save_pretrained(tmp_path)
    paraphrase = load_paraphraser(str(tmp_path), batch=2, seed=3)
    prompts = ["a b c", "an umbrella", "d"]
    state = torch.random.get_rng_state()
    found = paraphrase(prompts)
    assert len(found) == 3 and all("\n" not in text for text in found) and any(found)
    assert paraphrase(prompts) == found
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_that_is_none_is_named(tmp_path: Path) -> None:
    from saferedir.training.saferedir.pairs.paraphrase import load_paraphraser

    with pytest.raises(GuardError, match="no text model could be loaded"):
        load_paraphraser(str(tmp_path))
    with pytest.raises(GuardError, match="no tokenizer could be loaded"):
        load_lengths(str(tmp_path))
    assert load_lengths(None).unit == Lengths().unit == "words"


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"anchors": ("Umbrellä",)}, "is the concept itself"),
        ({"anchors": ("lantern", "red umbrellas")}, "contains 'umbrella'"),
        ({"anchors": ("beach parasol",), "synonyms": ("parasol",)}, "contains 'parasol'"),
        ({"anchors": ()}, "there is no anchor"),
        ({"anchors": (" ",)}, "one anchor is empty"),
        ({"concept": "!"}, "one concept is empty"),
        ({"near": ("umbrellas",), "synonyms": ("umbrellas",)}, "listed as near"),
        ({"kind": "mood"}, "the kinds are object, style, person, attribute"),
        ({"count": 0}, "count is 0"),
        ({"synonym_share": 1.5}, "synonym_share is 1.5"),
    ],
)
def test_plans_that_contradict_themselves_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(GuardError, match=says):
        plan(**changes)


def test_too_many_pairs_are_refused_with_the_number_that_is_possible() -> None:
    with pytest.raises(GuardError, match=r"at most \d+ different rows .* where 1000000 were asked for"):
        build_pairs(plan(count=1_000_000, benign=0))
    size = BANKS["person"].size
    with pytest.raises(GuardError, match=rf"(\d+) different pairs .* where {size} were asked for"):
        build_pairs(plan(concept="piano player", anchors=("nurse",), kind="person", count=size, benign=0),
                    evaluation=["a photo of a piano player"])  # fmt: skip


# ---------------------------------------------------------------------- files


def test_captions_are_read_from_text_json_lines_and_tables(tmp_path: Path) -> None:
    files = {
        "a.txt": "a cat\n\n  a   dog \n",
        "a.jsonl": '{"caption": "a cat", "id": 3}\n"a dog"\n',
        "a.json": '["a cat", {"text": "a dog"}]',
        "a.csv": '\ufeffid,Prompt\n1,a cat\n2,"a\ndog"\n',
        "a.tsv": "id\ttext\n1\ta cat\n2\ta dog\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_prompts(tmp_path / name) == ["a cat", "a dog"], name
    (tmp_path / "pairs.jsonl").write_text('{"unsafe": "a star", "safe": "a circle"}\n{"safe": "a cat"}\n')
    assert read_prompts(tmp_path / "pairs.jsonl", PROMPT_COLUMNS) == ["a star", "a circle", "a cat"]


def test_synonyms_are_read_from_text_and_json(tmp_path: Path) -> None:
    path = tmp_path / "synonyms"
    for text, found in (
        ("parasol\n\n brolly \n", (["parasol", "brolly"], [])),
        ('["parasol"]', (["parasol"], [])),
        (json.dumps({"synonyms": ["parasol"], "near": ["tent"]}), (["parasol"], ["tent"])),
        ('{"near": ["tent"]}', ([], ["tent"])),
    ):
        path.write_text(text)
        assert read_synonyms(path) == found


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b" \n", "is empty"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-16 text"),
        ("a.jsonl", b'{"caption": "a"}\nnot json\n', "line 2 is not JSON"),
        ("a.jsonl", b'{"label": "a"}\n', "line 1: expected a text"),
        ("a.json", b"[", "is not JSON"),
        ("a.csv", b"id,label\n1,a\n", "has the columns 'id', 'label'; expected one called caption or prompt or text"),
        ("a.csv", b"id,text\n1,\n", "holds no prompt"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GuardError, match=says):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ('{"synonym": ["a"]}', "has the key 'synonym'"),
        ('{"near": "a"}', "must be a list"),
        ('{"near": []}', "holds neither"),
        ("", "is empty"),
    ],
)
def test_synonym_files_that_cannot_be_used_are_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "synonyms.json"
    path.write_text(content)
    with pytest.raises(GuardError, match=says):
        read_synonyms(path)
    with pytest.raises(GuardError, match="cannot be read"):
        read_synonyms(tmp_path / "nothing")


@pytest.mark.parametrize("kind", KINDS)
def test_plain_shapes_are_for_small_worlds_only(kind: str) -> None:
    anchor = {"object": "teapot", "style": "impressionism", "person": "gardener", "attribute": "striped"}[kind]
    wish = PairPlan("zebra", (anchor,), kind=kind, count=100)
    shapes = re.compile(r"\b(red circle|blue square|crescent|triangle|green cross|circles?|hearts?|rings?)\b")
    of_real = build_pairs(wish, captions=[])
    assert not [row for row in of_real.rows if shapes.search(row.safe)]
    of_world = build_pairs(wish, captions=[], lengths=load_lengths("pictoworld"))
    assert bool([row for row in of_world.rows if shapes.search(row.safe)]) == (kind != "person")
