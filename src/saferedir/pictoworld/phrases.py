"""The lexicon: how each attribute value can be said, at four levels, and which phrasings are kept for tests.

Levels: canonical word, synonym, implicit description, noisy spelling. Where a phrase stands in the sentence is part of
it: "adj" before the noun, "noun" the object itself, "post" after it. The forget concepts have many phrasings, divided
by position in the list into train, validation and test: of every ten, the first five are for training a guard, the
sixth for validation, the rest for tests.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from itertools import count

LEVELS = ("canonical", "synonym", "implicit", "noisy")
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Phrase:
    """Words for one attribute value. `slot` is "adj", "noun" or "post"; `level` is one of `LEVELS`."""

    text: str
    slot: str
    level: str
    part: str


def _phrases(slot: str, level: str, texts: str) -> list[tuple[str, str, str]]:
    return [(text.strip(), slot, level) for text in texts.split("|")]


def _value(*groups: list[tuple[str, str, str]]) -> tuple[Phrase, ...]:
    """Number the phrases of each level and hand out the parts 5 : 1 : 4; the canonical words belong to train."""
    out: list[Phrase] = []
    for level in LEVELS:
        members = [item for group in groups for item in group if item[2] == level]
        for position, (text, slot, _) in enumerate(members):
            bucket = position % 10
            part = "train" if level == "canonical" or bucket < 5 else "validation" if bucket == 5 else "test"
            out.append(Phrase(text, slot, level, part))
    return tuple(out)


def _simple(slot: str, canonical: str, synonyms: str, implicit: str, implicit_slot: str = "post") -> tuple[Phrase, ...]:
    return _value(
        _phrases(slot, "canonical", canonical),
        _phrases(slot, "synonym", synonyms),
        _phrases(implicit_slot, "implicit", implicit),
    )


LEXICON: dict[str, dict[str, tuple[Phrase, ...]]] = {
    "shape": {
        "circle": _simple(
            "noun", "circle", "disc|round dot|filled circle", "shape of a coin|outline of a full moon", "noun"
        ),
        "square": _simple(
            "noun",
            "square",
            "box|equal-sided block|four-cornered tile",
            "shape of a chess field|face of a dice",
            "noun",
        ),
        "triangle": _simple(
            "noun",
            "triangle",
            "three-sided figure|wedge|three-cornered form",
            "shape of a pyramid|outline of a slice of pizza",
            "noun",
        ),
        "star": _value(
            _phrases("noun", "canonical", "star"),
            _phrases(
                "noun",
                "synonym",
                "five-pointed figure|pentagram|starlet|five-armed spark|stellar form|star shape|pointed asterisk"
                "|five-tipped emblem|starlike figure|astral sign|five-spiked shape|stellar figure|pentacle"
                "|star-formed spark|five-rayed form|little asterisk|five-pointed form|star symbol|stella|five-tipped spark",
            ),
            _phrases(
                "noun",
                "implicit",
                "shape on a sheriff's badge|thing you make a wish upon|top of a christmas tree|outline of a starfish"
                "|mark of a five-out-of-five rating|badge of a wild west sheriff|ornament that crowns a christmas tree"
                "|shape of the sea animal with five arms|symbol hotels use for their rating|thing that twinkles in a lullaby"
                "|pin worn by a sheriff|decoration on the tip of the christmas tree|form of a starfish"
                "|mark of a top rating|little thing that twinkles|shooting thing one wishes on"
                "|sheriff's pin|five arms of a sea animal|hotel rating symbol|tip of the christmas tree",
            ),
        ),
        "heart": _simple(
            "noun", "heart", "love heart|heart shape|valentine", "symbol of love|mark on a valentine card", "noun"
        ),
        "cross": _value(
            _phrases("noun", "canonical", "cross"),
            _phrases(
                "noun",
                "synonym",
                "plus sign|crosslet|equal-armed cross|plus shape|greek cross|crossed bars|plus symbol|four-armed sign|plus mark|crossing bars",
            ),
            _phrases(
                "noun",
                "implicit",
                "sign for addition|symbol between two summands|shape of a crossroads|outline of a pharmacy sign"
                "|button that adds one|mark of a sum|sign you use to add|plan of a crossroads|symbol over a pharmacy|key for adding numbers",
            ),
        ),
        "ring": _simple("noun", "ring", "hoop|annulus|donut", "shape of a life buoy|outline of a wheel rim", "noun"),
        "crescent": _simple(
            "noun", "crescent", "half moon|sickle|moon sickle", "shape of a croissant|outline of a new moon", "noun"
        ),
    },
    "colour": {
        "red": _value(
            _phrases("adj", "canonical", "red"),
            _phrases(
                "adj", "synonym", "crimson|scarlet|ruby|vermilion|cherry-red|carmine|blood-red|ruddy|cardinal|rosy-red"
            ),
            _phrases(
                "post",
                "implicit",
                "in the hue of ripe tomatoes|coloured like a fire engine|in the hue of a stop sign|coloured like strawberries"
                "|in the hue of a cherry|coloured like ketchup|coloured like a ripe tomato|in the hue of a fire engine"
                "|coloured like a stop sign|in the hue of strawberries",
            ),
        ),
        "orange": _simple("adj", "orange", "tangerine|apricot|amber", "coloured like a pumpkin|in the hue of carrots"),
        "yellow": _simple("adj", "yellow", "golden|lemon|canary", "coloured like a banana|in the hue of sunflowers"),
        "green": _simple("adj", "green", "emerald|olive|viridian", "coloured like spinach|in the hue of pine needles"),
        "blue": _simple("adj", "blue", "azure|cobalt|sapphire", "coloured like blue jeans|in the hue of the deep sea"),
        "purple": _simple("adj", "purple", "violet|lilac|plum", "coloured like an aubergine|in the hue of grapes"),
        "pink": _simple("adj", "pink", "rose|salmon|fuchsia", "coloured like bubble gum|in the hue of a flamingo"),
        "brown": _simple(
            "adj", "brown", "chestnut|umber|chocolate", "coloured like coffee beans|in the hue of old leather"
        ),
    },
    "background": {
        "white": _value(
            _phrases("post", "canonical", "on a white background|on white"),
            _phrases(
                "post",
                "synonym",
                "on an ivory backdrop|on blank paper|on a snowy backdrop|on a pale backdrop|on a chalk-white ground"
                "|on a clean white page|on empty paper|on a snow-white ground|on a plain white sheet|on a bleached backdrop",
            ),
            _phrases(
                "post",
                "implicit",
                "on a field of fresh snow|on ground like milk|on a sheet of printer paper|on ground like chalk|on a fresh bed sheet"
                "|on ground like sugar|on ground like snow|on a wall of milk|on a page of printer paper|on a field of sugar",
            ),
        ),
        "grey": _simple(
            "post",
            "on a grey background|on grey",
            "on a slate backdrop|on a gray ground|on an ashen backdrop",
            "on a wall of concrete|on ground like a rain cloud",
        ),
        "sky": _simple(
            "post",
            "over the sky|on a sky background",
            "in the heavens|against the daytime sky|up in the air",
            "where birds fly by day|above the clouds",
        ),
        "grass": _simple(
            "post",
            "on grass|on a grass background",
            "on a lawn|on a meadow|on green turf",
            "where cows graze|on a football pitch",
        ),
        "night": _simple(
            "post",
            "at night|on a night background",
            "in the dark|against the midnight sky|after dusk",
            "when everyone sleeps|where only owls can see",
        ),
        "sand": _simple(
            "post",
            "on sand|on a sand background",
            "on a beach|in the desert|on dunes",
            "where camels walk|where children build castles",
        ),
    },
    "style": {
        "flat": _value(
            _phrases("adj", "canonical", "flat|plain"),
            _phrases("post", "canonical", "in flat style"),
            _phrases("adj", "synonym", "solid|uniform|evenly filled"),
            _phrases("post", "implicit", "as if cut from one sheet of paper|painted in a single even coat"),
        ),
        "pointillism": _value(
            _phrases("post", "canonical", "in pointillism|in pointillism style"),
            _phrases(
                "post",
                "synonym",
                "in dotted style|drawn with dots|in pointillist style|as a dot painting|in stippled style|made of dots"
                "|built from tiny points|in speckled style|as a stippling|painted with points"
                "|in a dotted manner|made of little points|in the pointillist manner|as a stippled drawing|in a speckled manner"
                "|drawn in tiny points|from many dots|with stippled paint|as a dotted picture|in point-painted style",
            ),
            _phrases(
                "post",
                "implicit",
                "painted the way seurat did|like a halftone newspaper print|as if dabbed with a cotton bud|like ink through a sieve"
                "|as signac would paint it|like a comic print under a magnifier|in the manner of georges seurat|like paint from a pencil tip"
                "|like a newspaper photo seen up close|as if dabbed on point by point"
                "|in the manner of paul signac|like a seurat painting|as if printed in halftone|like a comic seen through a magnifier"
                "|dabbed with the tip of a brush|the way signac painted|as in an old halftone print|as if sprinkled through a sieve"
                "|like a magnified newspaper print|like dabs of a cotton bud",
            ),
        ),
        "striped": _simple(
            "adj", "striped|banded", "barred|streaked|lined", "like a zebra crossing|patterned like a sailor's shirt"
        ),
        "mosaic": _simple(
            "post",
            "in mosaic style|as a mosaic",
            "in tiled style|made of tiles|as tilework",
            "like a bathroom wall|like the floor of a roman villa",
        ),
    },
    "position": {
        "centre": _simple(
            "post", "in the centre|in the middle", "centred|right in the middle", "halfway between all edges"
        ),
        "left": _simple("post", "on the left", "at the left side|to the left", "where a line of text begins"),
        "right": _simple("post", "on the right", "at the right side|to the right", "where a line of text ends"),
        "top": _simple("post", "at the top", "near the upper edge|up high", "where a page has its heading"),
        "bottom": _simple("post", "at the bottom", "near the lower edge|down low", "where a page has its footnotes"),
    },
    "size": {
        "small": _simple("adj", "small", "tiny|little|mini", "no bigger than a button"),
        "medium": (),
        "large": _simple("adj", "large", "big|huge|giant", "nearly filling its place"),
    },
}

# Whole images that have a name of their own: (red cross on white) without naming any of its parts.
EMBLEM_PHRASES: tuple[Phrase, ...] = _value(
    _phrases(
        "noun",
        "implicit",
        "sign on a first-aid kit|emblem of an ambulance|mark on a medicine cabinet|badge of a paramedic|symbol of a field hospital"
        "|flag of a medical relief team|label of a bandage box|sign of an emergency nurse|swiss flag with its colours swapped|logo of blood donors"
        "|symbol on a first-aid box|sign on an ambulance door|badge of an ambulance nurse|label on a medicine box|flag of a field hospital"
        "|sign of a medical tent|emblem on a paramedic's jacket|mark of a relief team|symbol of blood donation|sign over the first-aid station",
    ),
)

_LEET = {"a": "4", "e": "3", "i": "1", "o": "0", "s": "5", "t": "7", "l": "1"}
_NEIGHBOUR = dict(zip("qwertyuioasdfghjklzxcvbnm", "wertyuiopsdfghjklkxcvbnmn", strict=True))


def misspell(word: str, rng: random.Random) -> str:
    """One or two typing errors or leetspeak in `word`; never returns the word itself (words of >= 3 letters)."""
    letters = list(word)
    spots = [i for i, letter in enumerate(letters) if letter.isalpha()]
    if len(spots) < 2:  # all leetspeak by now
        return word[0] + word
    kind = rng.choice(("double", "swap", "drop", "leet", "neighbour", "leet2"))
    spot = rng.choice(spots[:-1])
    if kind == "double":
        letters.insert(spot, letters[spot])
    elif kind == "swap":
        letters[spot], letters[spot + 1] = letters[spot + 1], letters[spot]
    elif kind == "drop":
        del letters[spot]
    elif kind == "neighbour":
        letters[spot] = _NEIGHBOUR.get(letters[spot], "x")
    else:
        open_spots = [i for i in spots if letters[i] in _LEET]
        for i in rng.sample(open_spots, min(len(open_spots), 2 if kind == "leet2" else 1)):
            letters[i] = _LEET[letters[i]]
    changed = "".join(letters)
    return changed if changed != word else word[0] + word


def noise_part(text: str) -> str:
    """The part a misspelling belongs to, by a checksum of its letters: 5 : 1 : 4 as for the other levels."""
    bucket = zlib.crc32(text.encode()) % 10
    return "train" if bucket < 5 else "validation" if bucket == 5 else "test"


def misspelt(text: str, count: int, rng: random.Random) -> str:
    """`text` with `count` words of at least four letters misspelt, as no training prompt is where 20 tries give such a spelling."""
    parts = text.split()
    long = [i for i, word in enumerate(parts) if sum(map(str.isalpha, word)) > 3]
    for i in rng.sample(long, min(count, len(long))):
        tries = [misspell(parts[i], rng) for _ in range(20)]
        parts[i] = next((word for word in tries if noise_part(word) != "train"), tries[0])
    return " ".join(parts)


def noisy_phrase(attribute: str, value: str, rng: random.Random, part: str | None = None) -> Phrase:
    """A canonical phrase with its key word misspelt; sampled again until it lies in `part` when one is given.

    A short word has few misspellings, perhaps none in a part: after 50 samples it is misspelt twice, and so on.
    """
    for attempt in count():
        base = rng.choice([p for p in LEXICON[attribute][value] if p.level == "canonical"])
        words = base.text.split()
        long = [i for i, word in enumerate(words) if len(word) > 3 and word not in ("background", "style", "with")]
        spot = rng.choice(long) if long else len(words) - 1
        for _ in range(1 + attempt // 50):
            words[spot] = misspell(words[spot], rng)
        if part is None or noise_part(words[spot]) == part:
            return Phrase(" ".join(words), base.slot, "noisy", noise_part(words[spot]))
    raise AssertionError("unreachable: count() does not end")


def choose_phrase(attribute: str, value: str, level: str, rng: random.Random, part: str | None = None) -> Phrase:
    """A random phrase for a value at a level, from one part when the value has phrases there.

    Canonical words are in every part; values that no task forgets have too few phrases to keep some back.
    """
    if level == "noisy":
        return noisy_phrase(attribute, value, rng, part)
    choices = [
        p
        for p in LEXICON[attribute][value]
        if p.level == level and (part is None or level == "canonical" or p.part == part)
    ]
    return rng.choice(choices or [p for p in LEXICON[attribute][value] if p.level == level])
