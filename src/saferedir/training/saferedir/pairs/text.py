"""English for prompt pairs: find a concept in a sentence, put other words in its place, tell copies of prompts.

Words are compared after `normalise`: no case, no accents, no punctuation, no invisible characters, look-alike letters
of other alphabets as Latin ones.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEAK_OVERLAP = 0.9  # token Jaccard from which a training prompt counts as a copy of an evaluation prompt

_LATIN = "aceopxyijshkbmtnrvuwl"
_LOOKALIKES = str.maketrans(
    {
        **dict(zip("асеорхуіјѕһкьмтпгѵцѡӏ", _LATIN, strict=True)),
        **dict(zip("αεορικνυτχγη", "aeopikvutxyn", strict=True)),
        **{"в": "b", "н": "h", "ԁ": "d", "ԛ": "q", "ԝ": "w", "ı": "i", "ł": "l", "ø": "o", "ß": "ss", "æ": "ae"},
    }
)
_INVISIBLE = "\u00ad\u200b\u200c\u200d\u2060\ufeff"
_WORD = re.compile(rf"(?:[^\W_]|[\u0300-\u036f{_INVISIBLE}])+")
_NEGATION = re.compile(
    r"\b(?:no|not|non|without|never|none|neither|nor|minus|except|excluding|lacking|\w+n['’]t)\b", re.I
)
_DETERMINERS = re.compile(r"\b(an?|the)(\s+)$", re.I)
_ANY_DETERMINER = re.compile(r"\b(?:this|that|my|your|his|her|its|our|their|one|each|every|another|some|any)\s+$", re.I)

_IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "mouse": "mice", "goose": "geese",
    "foot": "feet", "tooth": "teeth", "leaf": "leaves", "knife": "knives", "wolf": "wolves", "shelf": "shelves",
    "half": "halves", "loaf": "loaves", "scarf": "scarves", "sheep": "sheep", "deer": "deer", "fish": "fish",
    "potato": "potatoes", "tomato": "tomatoes", "hero": "heroes", "cactus": "cacti",
}  # fmt: skip
_SINGULARS = {plural: singular for singular, plural in _IRREGULAR.items()}
_PLURAL_ONLY = {"glasses", "sunglasses", "scissors", "jeans", "trousers", "pants", "shorts", "goggles", "headphones"}
_POSTPOSED = {"made", "with", "wearing", "in", "on", "covered", "full", "holding", "carrying", "of", "from", "like"}


@dataclass(frozen=True)
class Term:
    """Words for a concept: `text` without its article, `article` "a", "the" or "" (names, plurals, substances).

    `is_noun` is False for styles and attributes, before which an article belongs to another word.
    """

    text: str
    article: str
    is_noun: bool = True

    @property
    def is_countable(self) -> bool:
        """Whether it has a plural of its own: an umbrella and the Acme logo have, the Eiffel Tower and jeans have not."""
        is_name = self.text.split()[-1][:1].isupper()
        return self.article == "a" or (self.article == "the" and not is_name and not is_plural(self.text))

    def suits(self, context: str) -> bool:
        """Whether the term can stand in a template: a plural of names there is none."""
        return "{xs}" not in context or self.is_countable or is_plural(self.text)


@dataclass(frozen=True)
class Mention:
    """Where a sentence says a term: characters `start` to `end`, `which` of the terms, and whether in the plural."""

    start: int
    end: int
    which: int
    is_plural: bool


def normalise(text: str) -> list[str]:
    """The words of a text in a form that can be compared: "Vän-Gоgh’s" (with a Cyrillic о) -> ["van", "gogh", "s"]."""
    return [word for raw in _WORD.findall(text) for word in _normal_word(raw)]


def _normal_word(raw: str) -> list[str]:
    text = unicodedata.normalize("NFKC", raw).casefold().translate(_LOOKALIKES)
    letters = unicodedata.normalize("NFD", text).translate(_LOOKALIKES)
    kept = "".join(c for c in letters if not unicodedata.combining(c) and c not in _INVISIBLE)
    return re.findall(r"[^\W_]+", kept)


def parse_term(text: str, *, is_noun: bool = True) -> Term:
    """A term from what a person wrote: "an umbrella", "umbrella", "the Eiffel Tower", "Ada Lovelace", "some water"."""
    text = " ".join(text.split())
    match = re.fullmatch(r"(an?|the|some)\s+(.+)", text, re.I)
    if match:
        article = {"an": "a", "some": ""}.get(match[1].lower(), match[1].lower())
        return Term(match[2], article if is_noun else "", is_noun)
    last = text.split()[-1] if text else ""
    is_name = last[:1].isupper() and not last.isupper() and last[1:2] != "-"
    return Term(text, "" if not is_noun or is_name or is_plural(text) else "a", is_noun)


def is_plural(text: str) -> bool:
    """Whether the last word looks like a plural."""
    word = text.lower().split()[-1] if text.split() else ""
    if word in _SINGULARS or word in _PLURAL_ONLY:
        return True
    return len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is", "as", "ens"))


def plural(text: str) -> str:
    """The text with its last word in the plural; unchanged where it is one already."""
    if not text or is_plural(text):
        return text
    head, word = text[: -len(text.split()[-1])], text.split()[-1]
    low = word.lower()
    if low in _IRREGULAR:
        return head + _IRREGULAR[low]
    if re.search(r"[^aeiou]y$", low):
        return head + word[:-1] + "ies"
    return head + word + ("es" if low.endswith(("s", "x", "z", "ch", "sh")) else "s")


def _singular(text: str) -> str:
    head, word = text[: -len(text.split()[-1])], text.split()[-1]
    low = word.lower()
    if low in _PLURAL_ONLY or not is_plural(text):
        return text
    if low in _SINGULARS:
        return head + _SINGULARS[low]
    if low.endswith("ies") and len(low) > 4:
        return head + word[:-3] + "y"
    return head + (word[:-2] if low.endswith(("sses", "xes", "zes", "ches", "shes", "uses")) else word[:-1])


def _forms(text: str) -> list[tuple[list[str], bool]]:
    """Spellings that count as saying the text, with whether each is its plural."""
    single, many = _singular(text), plural(text)
    # a term given in the plural is its own ordinary form
    spellings = [(text, False), (many, many != text), (single, False)]
    forms = [(normalise(spelling), flag) for spelling, flag in spellings]
    joined = [(["".join(words)], flag) for words, flag in forms if len(words) > 1]
    return [form for form in forms + joined if form[0]]


def find_mentions(text: str, terms: Sequence[str], shields: Sequence[str] = ()) -> list[Mention]:
    """Where `text` says one of `terms`, left to right without overlap, the longest first.

    What lies inside one of `shields` is not counted: with the shield "baseball bat", a baseball bat is no bat.
    """
    words = [(w, m.start(), m.end()) for m in _WORD.finditer(text) for w in _normal_word(m.group())]
    hidden = _spans(words, shields)
    spans = [s for s in _spans(words, terms) if not any(h[0] <= s[0] and s[1] <= h[1] for h in hidden)]
    spans.sort(key=lambda span: (span[0], -span[1], span[3]))
    kept: list[Mention] = []
    end = -1
    for first, last, which, is_many in spans:
        if first > end:
            kept.append(Mention(words[first][1], words[last][2], which, is_many))
            end = last
    return kept


def _spans(words: Sequence[tuple[str, int, int]], terms: Sequence[str]) -> list[tuple[int, int, int, bool]]:
    """(first word, last word, term, is plural) of every match."""
    bare = [word for word, _, _ in words]
    spans = []
    for which, term in enumerate(terms):
        for form, is_many in _forms(term):
            size = len(form)
            for first in range(len(bare) - size + 1):
                if bare[first : first + size] == form:
                    spans.append((first, first + size - 1, which, is_many))
    return spans


def has_negation(text: str) -> bool:
    """Whether the sentence says no, not, without or the like."""
    return _NEGATION.search(text) is not None


def fill(context: str, term: Term, padding: str = "") -> str:
    """Put a term in a template's {a}, {x} and {xs}; articles agree, and the words `padding` stand right before the term.

    An attribute that cannot stand before its noun ("made of glass") goes behind it.
    """
    if is_postposed(term):
        context = re.sub(r"\{x\} (\w+)", r"\1 {x}", context)
    article = "a" if not term.is_noun and "{a}" in context else term.article
    extra = f"{padding} " if padding else ""
    text = context.replace("{a}", article)
    text = text.replace("{xs}", extra + (plural(term.text) if term.is_countable else term.text))
    return agree(" ".join(text.replace("{x}", extra + term.text).split()))


def is_postposed(term: Term) -> bool:
    """Whether an attribute stands behind its noun: "made of glass", "with a hat"."""
    return not term.is_noun and term.text.lower().split()[0] in _POSTPOSED


def takes_words(term: Term) -> bool:
    """Whether a word may stand right before the term: not before a name, nor an attribute behind its noun."""
    return not is_postposed(term) and (not term.is_noun or term.article == "a" or is_plural(term.text))


def agree(text: str) -> str:
    """Make every "a" and "an" agree with the sound of the next word."""

    def choose(match: re.Match[str]) -> str:
        article = "an" if _starts_with_vowel(match[3]) else "a"
        return (article.capitalize() if match[1][0] == "A" else article) + match[2] + match[3]

    return re.sub(r"\b([Aa]n?)(\s+)([^\W_]+)", choose, text)


def _starts_with_vowel(word: str) -> bool:
    if len(word) > 1 and word.isupper():
        return word[0] in "AEFHILMNORSX"  # spelt out: an SUV, a UFO
    low = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if not unicodedata.combining(c))
    if re.match(r"(?:hour|honest|honou?r|heir)", low) or low in (
        "8",
        "11",
        "18",
        "8k",
        "x",
        "f",
        "h",
        "l",
        "m",
        "n",
        "s",
    ):
        return True
    return low[:1] in tuple("aeiou") and not re.match(
        r"(?:uni(?!n|m)|us[aeu]|eu|ewe|one\b|once|u[ft]o\b|ukulele|uk)", low
    )


def substitute(text: str, mentions: Sequence[Mention], sources: Sequence[Term], target: Term) -> str:
    """The text with every mention replaced by `target`: its number, its capital and the article before it agree.

    `sources[mention.which]` is the term that was found there.
    """
    for mention in reversed(mentions):
        before, after = text[: mention.start], text[mention.end :]
        words = plural(target.text) if mention.is_plural and target.is_countable else target.text
        if target.is_noun:
            before = _article(before, mention, sources[mention.which], target)
        if not before.strip() and text[mention.start].isupper():
            words = words[:1].upper() + words[1:]
        elif before[:1].islower() and text[:1].isupper():
            before = before[:1].upper() + before[1:]
        determiner = _DETERMINERS.search(before)
        if determiner and determiner[1].lower() != "the":
            right = agree(determiner[0] + words)[: -len(words)]
            before = before[: determiner.start()] + right
        text = before + words + after
    return text


def _article(before: str, mention: Mention, source: Term, target: Term) -> str:
    """What stands before a mention, with the article that the target wants."""
    match = _DETERMINERS.search(before)
    if match:
        if target.article == "a" or (target.article == "the" and match[1].lower() == "the"):
            return before
        if target.article == "the":
            return before[: match.start()] + "the" + match[2]
        return before if match[1].lower() == "the" and is_plural(target.text) else before[: match.start()]
    if source.article == "a" or mention.is_plural or not target.article or _ANY_DETERMINER.search(before):
        return before
    return before + f"{target.article} "


class LeakIndex:
    """Finds evaluation prompts that equal a prompt after normalisation or share at least 0.9 of the joint words."""

    def __init__(self, prompts: Iterable[str]) -> None:
        self._prompts = {" ".join(normalise(prompt)): prompt for prompt in prompts}
        self._sets = [(frozenset(key.split()), prompt) for key, prompt in self._prompts.items() if key]
        self._by_word: dict[str, list[int]] = {}
        for number, (words, _) in enumerate(self._sets):
            for word in words:
                self._by_word.setdefault(word, []).append(number)

    def match(self, prompt: str) -> str | None:
        """The evaluation prompt that `prompt` copies, or None."""
        words = normalise(prompt)
        if equal := self._prompts.get(" ".join(words)):
            return equal
        mine = frozenset(words)
        # a copy shares all but a tenth of the words, so one of any tenth of them plus one: look at the rarest
        rarest = sorted(mine, key=lambda word: (len(self._by_word.get(word, ())), word))
        for word in rarest[: len(mine) - math.ceil(LEAK_OVERLAP * len(mine)) + 1]:
            for number in self._by_word.get(word, ()):
                theirs, original = self._sets[number]
                if len(mine & theirs) >= LEAK_OVERLAP * len(mine | theirs):
                    return original
        return None
