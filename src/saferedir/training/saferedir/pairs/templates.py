"""Sentences to put a concept in: templates, words for their slots, and other things to show, for each kind of concept.

`build.py` fills them. In a template {x} is the concept or what replaces it, {xs} its plural, {a} its article if it
takes one; every other name is a slot of `SLOTS`. Write "a" only where "an" may stand too: articles are made to agree
afterwards. Some templates keep to plain words, which small text encoders know.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

OWN = ("a", "x", "xs")  # slots of the concept itself


def _lines(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for line in text.strip().splitlines() for item in line.split("|"))


SLOTS: Mapping[str, tuple[str, ...]] = {
    "colour": _lines("red|blue|green|yellow|purple|orange|pink|brown|white|grey|silver|turquoise"),
    "size": _lines("small|large|tiny|huge|little|big"),
    "look": _lines("shiny|old|brand new|wooden|rusty|transparent|handmade|dusty|elegant|colourful|antique|toy"),
    "place": _lines(
        """on white|on a grey background|over the sky|on grass|on sand|on the left|on the right|at the top|at night
        at the bottom|in the middle|on a beach|in the desert|on a table|in a garden|on a city street|in front of a barn
        beside a river|on a mountain path|in a museum|on a kitchen counter|in the snow|under a bridge|in a library"""
    ),
    "ground": _lines("on white|on grey|over the sky|on grass|on sand|at night|in the desert|on a grey background"),
    "side": _lines("on the left|on the right|at the top|at the bottom|in the middle|in the centre"),
    "medium": _lines(
        """an oil painting|a watercolour|a pencil sketch|a 3d render|a charcoal drawing|a woodcut|a linocut print
        a children's book illustration|a vintage postcard|a poster|a pastel drawing|an embroidery|a collage|a mural"""
    ),
    "light": _lines(
        """soft light|golden hour|studio lighting|harsh shadows|candlelight|neon light|backlit|morning mist
        overcast sky|moonlight|warm colours|muted colours"""
    ),
    "time": _lines("at dawn|at noon|at dusk|in spring|in autumn|in winter|on a rainy day|on a foggy morning"),
    "lens": _lines("shallow depth of field|wide angle|35mm film|macro lens|high detail|sharp focus|grainy film|8k"),
    "scene": _lines(
        """a landscape|a harbour with boats
        a city at night|a bowl of fruit|a sleeping cat|a mountain lake|a village street|a field of flowers|a lighthouse
        a portrait of an old fisherman|a windmill|a crowded market|a forest path|a horse|a bridge over a river|a café
        a snowy street|a train station|a vase of tulips|a castle on a hill|a small boat at sea|two dancers|a kitchen
        a desert road|a waterfall|an orchard in bloom|a fishing village|an old library|a grazing herd of sheep"""
    ),
    "act": _lines(
        """reading a book|riding a bicycle|drinking tea|giving a speech|playing the piano|walking a dog|smiling|cooking
        waving from a balcony|planting a tree|feeding pigeons|painting a fence|waiting for a bus|laughing"""
    ),
    "wear": _lines(
        "a raincoat|a woollen scarf|a straw hat|a grey suit|a blue shirt|round glasses|a spacesuit|an apron"
    ),
    "thing": _lines(
        """car|house|cup|chair|bicycle|ball|door|boat|dog|cat|hat|lamp|bottle
        bench|kite|table|bird|jacket|vase|bridge|tree|fence|balloon|book"""
    ),
}

#: slot -> plain shapes in it, which no prompt for a real model needs
SHAPES: Mapping[str, tuple[str, ...]] = {
    "scene": _lines(
        """a red circle|a blue square|a heart|a ring|a crescent|a triangle on grass|a green cross at night|a small pink heart
        a yellow star on sand|an orange square on the left|a large purple circle over the sky"""
    ),
    "thing": _lines("circle|square|heart|triangle|ring|crescent"),
}

_OBJECT = _lines(
    """{a} {x}|{a} {colour} {x}|{a} {size} {x}|{a} {size} {colour} {x}|{a} {colour} {x} {ground}|{a} {x} {ground}
    {a} {size} {x} {ground}|{a} {x} {side}|{a} {colour} {x} {side}|{a} {x} {side} {ground}|{a} {colour} {x} {side} {ground}
    {a} {size} {colour} {x} {side} {ground}|{a} {size} {colour} {x} {ground}|draw {a} {x} {ground}|draw {a} {colour} {x}
    draw {a} {size} {colour} {x} {side}|show me {a} {x} {place}|show me {a} {colour} {x} {ground}|here is {a} {colour} {x}
    here is {a} {size} {x} {ground}|a picture of {a} {x} {place}|a picture of {a} {colour} {x} {side}
    an image of {a} {colour} {x} {ground}|an image of {a} {size} {x}|an illustration of {a} {x} {ground}
    an illustration of {a} {size} {colour} {x}|a drawing of {a} {x} {side}|a drawing of {a} {colour} {x} {ground}
    a photo of {a} {x}|a photo of {a} {x} {place}|a photo of {a} {look} {x} {place}|{a} {look} {x} {place}
    {a} {x} {place}, {light}|{a} {x} {place} {time}|{medium} of {a} {x}|{medium} of {a} {x} {place}|{medium} of {a} {look} {x}
    {medium} of {a} {colour} {x} {time}|close-up of {a} {x}, {light}|close-up photograph of {a} {look} {x}, {lens}
    {a} {x} in the rain, {light}, {lens}|product photo of {a} {colour} {x}, {light}|{xs}|{xs} {place}|two {colour} {xs} {place}
    a row of {xs} {place}|three {look} {xs}|a pile of {size} {xs}|many {xs} {ground}|a child holding {a} {x} {place}
    a woman painting {a} {colour} {x}|an old man with {a} {x}, {light}|a dog next to {a} {x}|a cat looking at {a} {x} {place}
    a street scene with {a} {x}, {lens}|a shop window showing {a} {look} {x}|a robot carrying {a} {x} {place}
    a still life with {a} {x} and a cup of tea|a landscape with {a} {x} in the distance, {light}|{a} {x} beside a chair
    a postage stamp with {a} {colour} {x} on it|{x}, {medium}|{x} {place}, {lens}|{colour} {x}, {light}, {lens}
    aerial view of {a} {x} {place}|{a} {look} {x} floating in space|{a} {x} seen through a window {time}
    a room with a sofa, a lamp and {a} {x}|i would like to see {a} {x} {place} {time}|make a poster with {a} {x}, {light}"""
)
_STYLE = _lines(
    """{scene} in {x} style|{scene} in the style of {x}|{scene}, {x}|{scene}, {x} style|draw {scene} in {x} style
    a picture of {scene} in {x} style|an image of {scene} in the style of {x}|an illustration of {scene} in {x} style
    a drawing of {scene} in {x} style|show me {scene} in the style of {x}|here is {scene} in {x} style|{x} style, {scene}
    {x} picture of {scene}|{scene} {time} in {x} style|{scene} in {x} style, {light}|{scene}, in the style of {x}, {light}
    {medium} of {scene} in the style of {x}|{medium} in {x} style|{scene} painted in the style of {x}|{scene} as {x} art
    {scene} {time}, in the style of {x}|{scene} inspired by {x}|{scene}, inspired by {x}, {light}|{scene}, {x} school
    {scene} that looks like {x} art|{scene} in a {x} manner|{scene} rendered as {x} art|{x} artwork showing {scene}
    {x} artwork of {scene} {time}|a {x} style picture of {scene}|a {x} style poster showing {scene}|a {x} artwork, {scene}
    a gallery wall with {scene} in {x} style|a fresco with {scene} in the style of {x}|a postcard with {scene} in {x} style
    a book cover with {scene}, {x} style|wallpaper, {scene}, {x} style, {lens}|{scene}, strongly influenced by {x}
    {scene} with {x} brushwork|{scene} in {x} colours|{scene} with {x} textures, {light}
    {scene} reminiscent of {x} art|{scene} as imagined in {x} style|a homage to {x} art: {scene}|a study of {scene} in {x} style
    a quick sketch of {scene} in {x} style|a large canvas with {scene} in the style of {x}|a print of {scene}, {x} style
    a student's copy of {scene} in the style of {x}|concept art of {scene} in {x} style|a stage set with {scene} in {x} style
    a stamp showing {scene}, {x} style|a tapestry of {scene} in the style of {x}|a mug printed with {scene} in {x} style
    {scene}, {light}, {x} style, {lens}|{scene}, {lens}, in the style of {x}|please paint {scene} in the style of {x}
    i would like {scene} in {x} style|make {scene} look like {x} art|turn {scene} into {x} style
    a calendar page, {scene}, {x} style|a magazine illustration of {scene} in the style of {x}
    an album cover showing {scene}, {x} style, {light}"""
)
_PERSON = _lines(
    """a photo of {a} {x}|a portrait of {a} {x}|{a} {x}|{a} {x} {act}|a photo of {a} {x} {act}|{a} {x} {act} {place}
    a picture of {a} {x}|an image of {a} {x} {place}|draw {a} {x}|show me {a} {x} {place}|a drawing of {a} {x} {act}
    {medium} of {a} {x}|{medium} of {a} {x} {act}|{medium} of {a} {x} {time}|{a} {x} in {wear}|{a} {x} in {wear}, {light}
    a portrait of {a} {x} in {wear}|a portrait of {a} {x}, {light}|a portrait of {a} {x}, {light}, {lens}|{a} {x} {time}
    close-up of {a} {x}, {lens}|close-up portrait of {a} {x} {act}|{a} {x} in {wear} {act}|{a} {x} {act} {time}
    {a} {x} {act}, {light}|a photo of {a} {x} {place} {time}|a candid photo of {a} {x} {act} {place}|a statue of {a} {x} {place}
    a bronze bust of {a} {x}|a cartoon of {a} {x} {act}|a caricature of {a} {x} in {wear}|a postage stamp with {a} {x} on it
    a poster with {a} {x}|a magazine cover with {a} {x}, {light}|a fresco of {a} {x} {time}|a wax figure of {a} {x} in {wear}
    a child and {a} {x} {act}|a dog sitting next to {a} {x}|{a} {x} and a friend {act}|a crowd around {a} {x} {place}
    {a} {x} standing {place}|{a} {x} sitting {place}, {light}|{a} {x} on a stage, {light}|{a} {x} at a desk {act}
    {a} {x} seen from behind {place}|{a} {x} looking out of a window {time}|{a} {x} on a train {act}|{a} {x} shaking hands
    {a} {x} as a chess piece|{a} {x} as an astronaut|{a} {x} as a knight, {light}|{a} {x} in an old photograph
    black and white photo of {a} {x} {act}|passport photo of {a} {x}|film still of {a} {x} {act}, {lens}|a doll of {a} {x}
    {x}, {medium}|{x}, {light}, {lens}|{x} {act}, {lens}|a profile view of {a} {x}, {light}|a silhouette of {a} {x} {time}
    {a} {x} holding a cup of tea {place}|i would like to see {a} {x} {act}|a birthday card with {a} {x} {act}"""
)
_ATTRIBUTE = _lines(
    """{a} {x} {thing}|{a} {x} {thing} {ground}|{a} {x} {thing} {side}|{a} {size} {x} {thing}|{a} {size} {x} {thing} {ground}
    {a} {x} {thing} {side} {ground}|draw {a} {x} {thing}|draw {a} {x} {thing} {ground}|show me {a} {x} {thing} {place}
    here is {a} {x} {thing}|here is {a} {x} {thing} {ground}|a picture of {a} {x} {thing}|a picture of {a} {x} {thing} {side}
    an image of {a} {x} {thing} {ground}|an illustration of {a} {x} {thing}|an illustration of {a} {size} {x} {thing} {side}
    a drawing of {a} {x} {thing}|a drawing of {a} {x} {thing} {ground}|a photo of {a} {x} {thing}|{a} {x} {thing} {place} {time}
    a photo of {a} {x} {thing} {place}|a photo of {a} {size} {x} {thing}, {light}|{a} {x} {thing} {time}
    {medium} of {a} {x} {thing}|{a} {x} {thing} {place}, {light}
    {medium} of {a} {x} {thing} {place}|{medium} of {a} {x} {thing} {time}
    close-up of {a} {x} {thing}|close-up of {a} {x} {thing}, {light}|{a} {x} {thing} in the rain, {lens}
    product photo of {a} {x} {thing}, {light}|a child holding {a} {x} {thing}|a woman painting {a} {x} {thing}
    an old man with {a} {x} {thing}|a dog next to {a} {x} {thing} {place}|a cat looking at {a} {x} {thing}
    a street scene with {a} {x} {thing}, {lens}|a shop window showing {a} {x} {thing}|a robot carrying {a} {x} {thing}
    a still life with {a} {x} {thing}, {light}|a landscape with {a} {x} {thing} in the distance|{a} {x} {thing} beside a chair
    a postage stamp with {a} {x} {thing} on it|aerial view of {a} {x} {thing} {place}|{a} {x} {thing} floating in space
    {a} {x} {thing} seen through a window {time}|a room with a sofa and {a} {x} {thing}|a poster with {a} {x} {thing}, {light}
    i would like to see {a} {x} {thing} {place}|{x} {thing}|{x} {thing}, {light}|{x} {thing} {place}, {lens}|{x} {thing}, {medium}
    a museum guide pointing at {a} {x} {thing}|a garden with {a} {x} {thing} {time}|a book cover with {a} {x} {thing}
    {a} {x} {thing} under a tree|{a} {x} {thing} on a shelf, {light}|{a} {x} {thing} on a busy square {time}
    someone leaning on {a} {x} {thing}|a model kit of {a} {x} {thing}|a toy version of {a} {x} {thing} {place}
    {a} {x} {thing} next to a larger one|a catalogue page with {a} {x} {thing}, {lens}"""
)


@dataclass(frozen=True)
class Bank:
    """Templates of one kind of concept, the words of their slots, other things of the kind, and words to pad with.

    `others` are benign things to show in place of the concept; `padding` are neutral words, one or two, that may stand before {x}
    to even lengths out. `has_shapes`: whether a plain shape is one of those things.
    """

    templates: tuple[str, ...]
    others: tuple[str, ...]
    padding: tuple[str, ...]
    slots: Mapping[str, tuple[str, ...]]
    has_shapes: bool = False

    @property
    def size(self) -> int:
        """How many different sentences there are."""
        return sum(math.prod(len(self.slots[name]) for name in open_slots(t)) for t in self.templates)

    def with_shapes(self) -> Bank:
        """The bank with plain shapes among its scenes and things: for small worlds that show nothing else."""
        slots = {name: (*SHAPES.get(name, ()), *words) for name, words in self.slots.items()}
        others = (*SHAPES["thing"], *self.others) if self.has_shapes else self.others
        return replace(self, slots=slots, others=others)

    def restricted(self, is_plain: Callable[[str], bool]) -> Bank:
        """The part of the bank whose every word is plain; templates with an emptied slot go."""
        slots = {name: tuple(w for w in words if is_plain(w)) for name, words in self.slots.items()}
        templates = tuple(
            t
            for t in self.templates
            if is_plain(re.sub(r"\{\w+\}", "", t)) and all(slots[name] for name in open_slots(t))
        )
        others = tuple(o for o in self.others if is_plain(o))
        return replace(self, templates=templates, others=others, slots=slots)

    def contexts(self, rng: random.Random) -> Iterator[str]:
        """Every different sentence once, {a}, {x} and {xs} still open: templates in turn, fillings in random order."""
        streams = [self._fillings(template, rng) for template in self.templates]
        while streams:
            rng.shuffle(streams)
            sentences = [(stream, next(stream, None)) for stream in streams]
            yield from (text for _, text in sentences if text is not None)
            streams = [stream for stream, text in sentences if text is not None]

    def _fillings(self, template: str, rng: random.Random) -> Iterator[str]:
        names = open_slots(template)
        total = math.prod(len(self.slots[name]) for name in names)
        start, stride = rng.randrange(total), rng.randrange(1, total + 1)
        while math.gcd(stride, total) > 1:
            stride = stride % total + 1
        for number in range(total):
            index, text = (start + number * stride) % total, template
            for name in names:
                index, choice = divmod(index, len(self.slots[name]))
                text = text.replace(f"{{{name}}}", self.slots[name][choice], 1)
            yield text


def open_slots(template: str) -> list[str]:
    """Names of the slots that a bank fills, in order: all but the concept's own."""
    return [name for name in re.findall(r"\{(\w+)\}", template) if name not in OWN]


BANKS: Mapping[str, Bank] = {
    "object": Bank(
        _OBJECT,
        _lines(
            """bicycle|teapot|lighthouse|guitar|armchair|kite|clock|violin|sofa
            wheelbarrow|candle|bookshelf|suitcase|typewriter|sailboat|scarf|backpack|lantern|mailbox|compass|rocking horse
            fountain|bench|tractor|pineapple|sunflower|telescope|drum|ladder|pumpkin|kettle|snow globe|canoe|piano"""
        ),
        _lines("plain|simple|single|ordinary|very simple|very plain|quite ordinary"),
        SLOTS,
        has_shapes=True,
    ),
    "style": Bank(
        _STYLE,
        _lines(
            """mosaic|tilework|pointillism|line art|impressionism|cubism|pop art|art deco|ukiyo-e|pixel art|photorealism
            minimalism|bauhaus|baroque|stained glass|paper cut-out|watercolour|comic book|vintage travel poster|blueprint
            charcoal|gouache|romanticism|folk art|isometric|low poly|chalk|graffiti|medieval manuscript"""
        ),
        _lines("classic|typical|pure|very typical|quite classic|rather typical"),
        SLOTS,
    ),
    "person": Bank(
        _PERSON,
        _lines(
            """gardener|fisherman|teacher|nurse|baker|firefighter|violinist|carpenter|astronaut|chess player|farmer|pilot
            librarian|street musician|mountaineer|postman|chemist|tailor|beekeeper|ferryman|cyclist|potter|watchmaker
            judge|surgeon|dancer|shepherd|sailor|architect|grandmother"""
        ),
        _lines("ordinary|local|unknown|typical|quite ordinary|rather unknown|very typical"),
        SLOTS,
    ),
    "attribute": Bank(
        _ATTRIBUTE,
        _lines(
            """plain|striped|blue|green|large|yellow|orange|pink|wooden|round|shiny|dusty|old|new|painted|folded|tall|woven
            frosted|square|handmade|polished|checked|dark|bright|heavy|carved|matte|inflatable|speckled"""
        ),
        _lines("very|rather|quite|fairly"),
        SLOTS,
    ),
}
KINDS = tuple(BANKS)
