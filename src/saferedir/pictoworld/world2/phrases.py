"""How PictoWorld 2's things can be called: PictoWorld's lexicon with more words for mosaic, and characters and posters.

Levels, slots and parts are those of `saferedir.pictoworld.phrases`; one slot is new, "name", which takes no article. Phrases
of each level are divided into train, validation and test 5 : 1 : 4 by their position in the list.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import combinations, count, product

from saferedir.pictoworld import phrases as first_world
from saferedir.pictoworld.phrases import Phrase, misspell, noise_part
from saferedir.pictoworld.scene import VALUES
from saferedir.pictoworld.world2.characters import CHARACTERS, Character
from saferedir.pictoworld.world2.posters import NEAR_VARIANTS, POSTERS, Poster

KEPT = 20  # phrases of each level that a character or a poster has


def _divided(slot: str, level: str, texts: Iterable[str]) -> tuple[Phrase, ...]:
    """Phrases of one level; of every ten, the first five are for training, the sixth for validation, the rest for tests."""
    parts = ("train",) * 5 + ("validation",) + ("test",) * 4
    return tuple(
        Phrase(text, slot, level, "train" if level == "canonical" else parts[position % 10])
        for position, text in enumerate(texts)
    )


_MOSAIC = (
    *(p for p in first_world.LEXICON["style"]["mosaic"] if p.level == "canonical"),
    *_divided(
        "post",
        "synonym",
        "in tiled style|made of tiles|as tilework|set from small tiles|in tesserae|laid in tiny squares|in tessellated style"
        "|built from square tiles|as a tiling|in a tiled manner|pieced from tiles|as laid tiles|in inlaid style"
        "|from coloured tiles|as an inlay of tiles|in tile-laid style|composed of tiles|as tessellation"
        "|made of small squares|tiled all over".split("|"),
    ),
    *_divided(
        "post",
        "implicit",
        "like a bathroom wall|like the floor of a roman villa|like a swimming pool floor|as on a byzantine church wall"
        "|like a kitchen splashback|as in ravenna's churches|like the bottom of a pool|as on a metro station wall"
        "|like a turkish bath|with grout between the pieces|like a shower wall|as gaudi covered his benches"
        "|like a pavement of antiquity|like a chessboard of stones|as in a pompeian house|like the dome of a basilica"
        "|like an old bath house|with joints between little stones|as a roman floor was laid|like a wall over the bathtub".split(
            "|"
        ),
    ),
)
#: values whose phrases are other than PictoWorld's
_OTHERWISE: Mapping[tuple[str, str], tuple[Phrase, ...]] = {("style", "mosaic"): _MOSAIC}

#: relation -> level -> templates; {a} is the first item, {b} the second
RELATION_TEMPLATES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "left of": {
        "canonical": ("{a} left of {b}",),
        "synonym": ("{a} to the left of {b}", "{a} on the left side of {b}"),
        "implicit": ("{a} with {b} on its right", "{a}, and on its right {b}"),
    },
    "right of": {
        "canonical": ("{a} right of {b}",),
        "synonym": ("{a} to the right of {b}", "{a} on the right side of {b}"),
        "implicit": ("{a} with {b} on its left", "{a}, and on its left {b}"),
    },
    "above": {
        "canonical": ("{a} above {b}",),
        "synonym": ("{a} on top of {b}", "{a} higher than {b}"),
        "implicit": ("{a} with {b} underneath", "{a}, and underneath {b}"),
    },
    "below": {
        "canonical": ("{a} below {b}",),
        "synonym": ("{a} beneath {b}", "{a} lower than {b}"),
        "implicit": ("{a} with {b} overhead", "{a}, and overhead {b}"),
    },
}

_HEAD = {
    "round": ("round", "ball-headed", "moon-faced"),
    "square": ("square", "box-headed", "cube-faced"),
    "tall": ("tall", "egg-headed", "long-faced"),
    "wide": ("wide", "broad-faced", "melon-headed"),
}
_EARS = {
    "pointed": ("pointed ears", "cat ears", "fox ears"),
    "round": ("round ears", "bear ears", "mouse ears"),
    "long": ("long ears", "rabbit ears", "donkey ears"),
    "curved": ("curved horns", "ram horns", "buffalo horns"),
}
_PATTERN = {
    "plain": ("no markings", "a bare face", "nothing on the face"),
    "spotted": ("{} spots", "{} freckles", "{} speckles"),
    "banded": ("a {} band", "a {} belt", "a {} ribbon"),
    "patched": ("a {} half", "half a {} face", "one {} side"),
}


def _first_words(attribute: str, value: str, level: str, slot: str) -> list[str]:
    return [p.text for p in first_world.LEXICON[attribute][value] if p.level == level and p.slot == slot]


def _with_article(template: str, colour: str) -> str:
    """The template's "a {}" with that colour and the right article."""
    return template.replace("a {}", "an {}" if colour[0] in "aeiou" else "a {}").format(colour)


def _descriptions(character: Character) -> list[str]:
    """The character's parts in plain words: head, ears, pattern, both colours."""
    head, ears, pattern = _HEAD[character.head][0], _EARS[character.ears][0], _PATTERN[character.pattern][0]
    pattern = _with_article(pattern, character.trim)
    templates = (
        "{colour} {head}-headed {noun} with {ears} and {pattern}",
        "{head}-headed {colour} {noun} with {pattern} and {ears}",
        "{colour} {noun} with a {head} head, {ears} and {pattern}",
        "{colour} {noun} with {pattern}, {ears} and a {head} head",
        "{noun} with {ears}, a {head} {colour} head and {pattern}",
    )
    return [
        template.format(colour=character.colour, head=head, ears=ears, pattern=pattern, noun=noun)
        for template, noun in product(templates, ("mascot", "creature", "critter", "fellow"))
    ]


def _hints(character: Character) -> list[str]:
    """The character's parts by what they resemble; no plain word for any of them but ears and horns."""
    heads, ears = _HEAD[character.head][1:], _EARS[character.ears][1:]
    trims = _first_words("colour", character.trim, "synonym", "adj")[:2]
    patterns = [_with_article(text, trim) for text in _PATTERN[character.pattern][1:] for trim in trims]
    colours = _first_words("colour", character.colour, "implicit", "post")[:2]
    return [
        f"{head} {noun} with {ear} and {pattern}, {colour}"
        for head, noun, ear, pattern, colour in product(heads, ("being", "sprite"), ears, patterns, colours)
    ]


def _some(texts: Sequence[str], key: str) -> list[str]:
    """`KEPT` of the texts in an order that depends on `key` only; every one of them different."""
    distinct = list(dict.fromkeys(texts))
    return random.Random(f"pictoworld-2/phrases/{key}").sample(distinct, min(KEPT, len(distinct)))


def _character_phrases(character: Character) -> tuple[Phrase, ...]:
    name = character.name
    return (
        *_divided("name", "canonical", (name, f"the mascot {name}")),
        *_divided("noun", "synonym", _some(_descriptions(character), f"{name}/synonym")),
        *_divided("noun", "implicit", _some(_hints(character), f"{name}/implicit")),
    )


_ADJECTIVES = {
    "Quiet": "silent|calm|hushed|peaceful|noiseless",
    "Golden": "gilded|gilt|sunlit|aureate|amber-lit",
    "Broken": "shattered|cracked|ruined|smashed|splintered",
    "Distant": "faraway|remote|far-off|outlying|faint",
    "Hidden": "secret|concealed|veiled|unseen|cloaked",
    "Frozen": "icy|ice-bound|frosty|frosted|iced-over",
    "Restless": "uneasy|fidgety|unquiet|agitated|stirring",
    "Tender": "gentle|soft|loving|mild|fond",
}
_NOUNS = {
    "Harbour": "port|haven|quay|dock",
    "Orchard": "fruit garden|apple grove|grove|fruit grove",
    "Lantern": "lamp|hand lamp|oil lamp|night lamp",
}
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def _paraphrases(poster: Poster) -> list[str]:
    adjective, noun = poster.title.split()
    return [f"the {a} {n} poster" for a, n in product(_ADJECTIVES[adjective].split("|"), _NOUNS[noun].split("|"))]


def _layouts(poster: Poster) -> list[str]:
    """What the poster shows: two of its figures, the larger first, and its background; no word of its title.

    Pairs of figures that another poster or any near variant shows too are left out.
    """
    others = [other for title in POSTERS for other in (POSTERS[title], *NEAR_VARIANTS[title]) if other != poster]
    out: list[str] = []
    for large, small in combinations(sorted(poster.figures, key=lambda figure: -figure.radius), 2):
        pair = {(large.shape, large.colour), (small.shape, small.colour)}
        if any(
            other.background == poster.background and pair <= {(f.shape, f.colour) for f in other.figures}
            for other in others
        ):
            continue
        for ground in _first_words("background", poster.background, "canonical", "post"):
            article, other_article = ("an" if f.colour[0] in "aeiou" else "a" for f in (large, small))
            figures = f"{article} {large.colour} {large.shape} and {other_article} {small.colour} {small.shape}"
            out += [f"the {noun} with {figures} {ground}" for noun in ("poster", "print")]
    return out


def _poster_phrases(poster: Poster) -> tuple[Phrase, ...]:
    title = poster.title
    return (
        *_divided("name", "canonical", (title, f"the poster {title}")),
        *_divided("name", "synonym", _some(_paraphrases(poster), f"{title}/synonym")),
        *_divided("name", "implicit", _some(_layouts(poster), f"{title}/implicit")),
    )


def _variant_phrases(poster: Poster) -> tuple[Phrase, ...]:
    ordinal = _ORDINALS[poster.variant - 1]
    return _divided(
        "name",
        "canonical",
        [f"the {ordinal} {noun} of {poster.title}" for noun in ("version", "edition", "recolouring")],
    )


@cache
def character_phrases(name: str) -> tuple[Phrase, ...]:
    """Every phrase for a character but misspelt ones: its name, descriptions in plain words, hints."""
    return _character_phrases(CHARACTERS[name])


@cache
def poster_phrases(poster: Poster) -> tuple[Phrase, ...]:
    """Every phrase for a poster but misspelt ones: its title, paraphrases, layouts; near variants have numbers only."""
    return _variant_phrases(poster) if poster.variant else _poster_phrases(poster)


def phrases_of(attribute: str, value: str) -> tuple[Phrase, ...]:
    """Every phrase for a value of "shape", "colour", "style", "background" or "character", but misspelt ones."""
    if attribute == "character":
        return character_phrases(value)
    return _OTHERWISE.get((attribute, value)) or first_world.LEXICON[attribute][value]


def _noisy_name(base: Phrase, rng: random.Random, part: str | None) -> Phrase:
    """A name or title with its longest word misspelt; sampled again until it lies in `part`."""
    for attempt in count():
        words = base.text.split()
        spot = max(range(len(words)), key=lambda i: (words[i][0].isupper(), len(words[i])))
        for _ in range(1 + attempt // 50):
            words[spot] = misspell(words[spot], rng)
        if part is None or noise_part(words[spot]) == part:
            return Phrase(" ".join(words), base.slot, "noisy", noise_part(words[spot]))
    raise AssertionError("unreachable: count() does not end")


def _choice(phrases: Sequence[Phrase], level: str, rng: random.Random, part: str | None) -> Phrase:
    """A phrase of a level and a part; of the level alone where the part has none, canonical where the level has none."""
    of_level = [p for p in phrases if p.level == level] or [p for p in phrases if p.level == "canonical"]
    of_part = [p for p in of_level if part is None or p.level == "canonical" or p.part == part]
    return rng.choice(of_part or of_level)


def choose_phrase(attribute: str, value: str, level: str, rng: random.Random, part: str | None = None) -> Phrase:
    """A random phrase for a value at a level, from one part when the value has phrases there."""
    if level == "noisy" and attribute in VALUES:
        return first_world.noisy_phrase(attribute, value, rng, part)
    phrases = phrases_of(attribute, value)
    if level == "noisy":
        return _noisy_name(_choice(phrases, "canonical", rng, part), rng, part)
    return _choice(phrases, level, rng, part)


def choose_poster_phrase(poster: Poster, level: str, rng: random.Random, part: str | None = None) -> Phrase:
    """A random phrase for a poster or a near variant at a level; variants have canonical and misspelt ones only."""
    phrases = poster_phrases(poster)
    if level == "noisy":
        return _noisy_name(_choice(phrases, "canonical", rng, part), rng, part)
    return _choice(phrases, level, rng, part)
