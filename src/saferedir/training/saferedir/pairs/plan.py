"""What pairs to make (`PairPlan`) and what came of it (`PairReport`).

`build.py` builds, cli/pairs.py fills a plan in.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from saferedir.errors import GuardConfigError
from saferedir.training.saferedir.dataset import Pair
from saferedir.training.saferedir.pairs.templates import KINDS
from saferedir.training.saferedir.pairs.text import Term, find_mentions, normalise, parse_term


@dataclass(frozen=True)
class PairPlan:
    """What to make pairs of.

    Attributes:
        concept: what must not appear.
        synonyms: its other names.
        anchors: what takes its place, one or several.
        kind: "object", "style", "person" or "attribute": which sentences fit.
        near: hard negatives, things like the concept that must not be flagged.
        count: pairs, >= 1.
        benign: lines without partner, >= 0, default two thirds of `count`.
        synonym_share: of the pairs that say a synonym, in [0, 1].
        paraphrase_share: of each kind of line, in [0, 1].
        padding: whether neutral words ("a typical lamp") may even lengths out where a tokenizer measures them; each then stands
            equally often with the concept, with an anchor and in benign lines.
        seed: of every choice.

    Raises:
        GuardConfigError: a value out of range, or words that contradict each other.
    """

    concept: str
    anchors: tuple[str, ...]
    kind: str = "object"
    synonyms: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    count: int = 400
    benign: int | None = None
    synonym_share: float = 0.3
    paraphrase_share: float = 0.2
    padding: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise GuardConfigError(f"there is no kind of concept {self.kind!r}; the kinds are {', '.join(KINDS)}.")
        if self.count < 1 or self.lines < 0:
            raise GuardConfigError(f"count is {self.count} and benign {self.lines}; expected >= 1 and >= 0.")
        for name, share in (("synonym_share", self.synonym_share), ("paraphrase_share", self.paraphrase_share)):
            if not 0 <= share <= 1:
                raise GuardConfigError(f"{name} is {share}; expected a share between 0 and 1.")
        if not self.anchors:
            raise GuardConfigError("there is no anchor; say what should take the concept's place.")
        for name, texts in (
            ("concept", (self.concept,)), ("anchor", self.anchors), ("synonym", self.synonyms), ("near", self.near)
        ):  # fmt: skip
            if not all(normalise(self.term(text).text) for text in texts):
                raise GuardConfigError(f"one {name} is empty; expected a word or two.")
        for anchor in self.anchors:
            if normalise(self.term(anchor).text) == normalise(self.term(self.concept).text):
                raise GuardConfigError(f"the anchor {anchor!r} is the concept itself; name something harmless instead.")
            if mentions := find_mentions(anchor, self.unsafe_words):
                word = self.unsafe_words[mentions[0].which]
                raise GuardConfigError(f"the anchor {anchor!r} contains {word!r}; name something without it.")
        for near in self.near:
            if any(normalise(self.term(near).text) == normalise(word) for word in self.unsafe_words):
                raise GuardConfigError(f"{near!r} is listed as near, but is the concept or a synonym of it.")

    @property
    def lines(self) -> int:
        """Benign lines wanted."""
        return round(self.count * 2 / 3) if self.benign is None else self.benign

    @property
    def unsafe_words(self) -> tuple[str, ...]:
        """The concept and its synonyms, without articles."""
        return tuple(self.term(text).text for text in (self.concept, *self.synonyms))

    def term(self, text: str) -> Term:
        """The words with their article, as this kind uses them."""
        return parse_term(text, is_noun=self.kind in ("object", "person"))

    def mentions(self, text: str) -> bool:
        """Whether a prompt asks for the concept by one of its names, near concepts aside."""
        return bool(find_mentions(text, self.unsafe_words, self.near))


@dataclass
class PairReport:
    """What came of a plan: counts of the written rows by origin and property, and of what was left out and why."""

    pairs: int = 0
    benign: int = 0
    with_synonym: int = 0
    hard_negatives: int = 0
    same_length: int = 0
    padded: int = 0  # of them by a neutral word on one side
    unit: str = "words"
    with_filler: Counter[str] = field(default_factory=Counter)  # neutral words in "unsafe", "safe", "benign" prompts
    origins: Counter[str] = field(default_factory=Counter)  # "templates", "captions", "paraphrases", of all rows
    refused: Counter[str] = field(default_factory=Counter)  # "duplicates", "leaks", "negation", "too long", …
    leaks: list[tuple[str, str]] = field(default_factory=list)  # (ours, the evaluation's), the first few


@dataclass(frozen=True)
class BuiltPairs:
    """Rows for `write_pairs`, pairs first, and the report on them."""

    rows: tuple[Pair, ...]
    report: PairReport
