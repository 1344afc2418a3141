"""Ways to write a text otherwise so that a person still reads it: pure functions of (text, level, source of randomness).

A level is a share of the letters (or words) that may be touched, in [0, 1]; at level 0 every one of them gives the text back.
Only the words that `words` names are touched, all of them where it is empty.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Mapping

#: neighbours on a keyboard with letters in the English order
KEYBOARD: Mapping[str, str] = {
    "q": "wa", "w": "qes", "e": "wrd", "r": "etf", "t": "ryg", "y": "tuh", "u": "yij", "i": "uok", "o": "ipl", "p": "ol",
    "a": "qsz", "s": "adwx", "d": "sfec", "f": "dgrv", "g": "fhtb", "h": "gjyn", "j": "hkum", "k": "jli", "l": "ko",
    "z": "xa", "x": "zcs", "c": "xvd", "v": "cbf", "b": "vng", "n": "bmh", "m": "nj",
}  # fmt: skip
LEET: Mapping[str, str] = {
    "a": "4",
    "b": "8",
    "e": "3",
    "g": "9",
    "i": "1",
    "l": "1",
    "o": "0",
    "s": "5",
    "t": "7",
    "z": "2",
}
#: letters of other scripts that look alike
CONFUSABLE: Mapping[str, str] = {
    "a": "а", "c": "с", "e": "е", "i": "і", "j": "ј", "o": "о", "p": "р", "s": "ѕ", "x": "х", "y": "у", "h": "һ",
}  # fmt: skip
#: clauses that say nothing about what is shown
CLAUSES = ("as part of a long series of images", "shown here for the first time", "carefully chosen from a large set")
COMBINING = "\u0307"
ZERO_WIDTH = "\u200d"

Transform = Callable[[str, float, random.Random, Collection[str]], str]


def _by_letter(
    text: str, level: float, source: random.Random, words: Collection[str], change: Callable[[str, int], str], can: str
) -> str:
    """The text with `change` made at that share of the letters in `can`, at least one of them where level > 0."""
    spots = [
        index
        for match in re.finditer(r"\w+", text)
        if not words or match[0].lower() in {word.lower() for word in words}
        for index in range(match.start(), match.end())
        if text[index].lower() in can
    ]
    count = min(len(spots), max(1, round(level * len(spots)))) if level > 0 else 0
    chosen = set(source.sample(spots, count))
    return "".join(change(letter, index) if index in chosen else letter for index, letter in enumerate(text))


def typos(text: str, level: float, source: random.Random, words: Collection[str] = ()) -> str:
    """Letters dropped, doubled, swapped with the next one, or replaced by a neighbour on the keyboard."""

    def change(letter: str, index: int) -> str:
        kind = source.randrange(4)
        following = text[index + 1] if index + 1 < len(text) else ""
        if kind == 0:
            return ""
        if kind == 1 or (kind == 2 and not following.isalpha()):
            return 2 * letter
        if kind == 2:
            return following + letter
        return source.choice(KEYBOARD[letter.lower()])

    return _by_letter(text, level, source, words, change, "".join(KEYBOARD))


def leetspeak(text: str, level: float, source: random.Random, words: Collection[str] = ()) -> str:
    """Digits in place of letters."""
    return _by_letter(text, level, source, words, lambda letter, _: LEET[letter.lower()], "".join(LEET))


def homoglyphs(text: str, level: float, source: random.Random, words: Collection[str] = ()) -> str:
    """Letters of another script that look the same."""
    return _by_letter(text, level, source, words, lambda letter, _: CONFUSABLE[letter.lower()], "".join(CONFUSABLE))


def full_width(text: str, level: float, source: random.Random, words: Collection[str] = ()) -> str:
    """Letters in their full-width forms."""
    return _by_letter(text, level, source, words, lambda letter, _: chr(ord(letter) + 0xFEE0), "".join(KEYBOARD))


def combining_marks(text: str, level: float, source: random.Random, words: Collection[str] = ()) -> str:
    """Letters with a combining mark."""
    return _by_letter(text, level, source, words, lambda letter, _: letter + COMBINING, "".join(KEYBOARD))


def _split(mark: str) -> Transform:
    def split(text: str, level: float, source: random.Random, words: Collection[str] = ()) -> str:
        wanted = {word.lower() for word in words}

        def cut(match: re.Match[str]) -> str:
            word = match[0]
            if len(word) < 3 or (wanted and word.lower() not in wanted) or source.random() >= level:
                return word
            at = source.randrange(1, len(word) - 1)
            return word[:at] + mark + word[at:]

        return re.sub(r"\w+", cut, text)

    return split


def long_prompt(text: str, level: float, source: random.Random, words: Collection[str] = ()) -> str:
    """Clauses that say nothing, before the text: three at level 1."""
    clauses = source.sample(CLAUSES, round(level * len(CLAUSES)))
    return ", ".join([*clauses, text])


#: name -> transform
TRANSFORMS: Mapping[str, Transform] = {
    "typos": typos,
    "leetspeak": leetspeak,
    "homoglyphs": homoglyphs,
    "full-width": full_width,
    "combining-marks": combining_marks,
    "hyphens": _split("-"),
    "dots": _split("."),
    "spaces": _split(" "),
    "zero-width": _split(ZERO_WIDTH),
    "long-prompt": long_prompt,
}


def transformed(text: str, name: str, level: float, seed: int, words: Collection[str] = ()) -> str:
    """A text by one transform, or by several joined with "+"; it depends on nothing but the arguments."""
    for part in name.split("+"):
        text = TRANSFORMS[part](text, level, random.Random(f"{seed}/{part}/{text}"), words)
    return text
