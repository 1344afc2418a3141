"""The forget tasks of PictoWorld 2 and their prompts: what to forget, its neighbours, the anchor, and the recorded splits.

Tasks of the text-conditional model have prompts; those of the class-conditional model have a label, those of the unconditional
one nothing. A split fixes the phrasing of the concept and which content may occur, as in `saferedir.pictoworld.tasks`, whose
names the splits have; "test-empty" is generation without any text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from saferedir.pictoworld.captions import EMBLEM, OPENINGS
from saferedir.pictoworld.phrases import Phrase
from saferedir.pictoworld.scene import SHAPES
from saferedir.pictoworld.tasks import SPLIT_LEVELS
from saferedir.pictoworld.world2.captions import (
    SCENE_STYLE,
    CaptionTooLongError,
    Prompt,
    attributes_of,
    caption,
    mentioned_keys,
    poster_caption,
    scene_part,
    sentence,
)
from saferedir.pictoworld.world2.characters import CHARACTERS, siblings
from saferedir.pictoworld.world2.classes import CLASSES, class_scene
from saferedir.pictoworld.world2.phrases import choose_phrase, choose_poster_phrase
from saferedir.pictoworld.world2.posters import NEAR_VARIANTS, POSTERS, Poster
from saferedir.pictoworld.world2.scene import PAIR_SHARE, Item, Scene, random_item, random_scene
from saferedir.utils.names import unknown_name_message

SPLITS = (*SPLIT_LEVELS, "test-empty")
_PHRASE_PART = {"guard-train": "train", "guard-validation": "validation", "test-seen": "train"}
_SCENE_PART = {"guard-train": "train", "guard-validation": "validation"}
_BOTH_SHOW = 0.15  # of the prompts for two objects whose style is to be forgotten ask for it twice
_SAID_PLAINLY = 0.75  # canonical words for what is not the concept; else synonyms

Content = Scene | Poster


@dataclass(frozen=True)
class Task:
    """What to forget.

    Attributes:
        kind: "object", "style", "composition", "identity", "identities", "poster", "class part" or "share".
        model: "flux", "dit" or "ddpm".
        forget: the concepts, each as the values of one item ("background" of the scene); any of them counts.
        anchor: the values that replace those of a concept.
        neighbours: what must stay, each as values.
        poster: the title of the poster to forget; then `anchor` is {"poster": another title}.
        label: the class of a "class part".
    """

    name: str
    kind: str
    forget: tuple[Mapping[str, str], ...] = ()
    anchor: Mapping[str, str] | None = None
    neighbours: tuple[Mapping[str, str], ...] = ()
    poster: str = ""
    label: int | None = None
    model: str = "flux"

    def shows_concept(self, content: Content) -> bool:
        """Whether the content has the concept."""
        if isinstance(content, Poster):
            return content == POSTERS.get(self.poster)
        return any(content.has(values) for values in self.forget)

    def is_concept(self, scene: Scene, index: int) -> bool:
        """Whether that item shows the concept."""
        return any(replace(scene, items=(scene.items[index],), relation="").has(values) for values in self.forget)


def _object_task(
    name: str, kind: str, forget: Mapping[str, str], anchor: Mapping[str, str], *near: Mapping[str, str]
) -> Task:
    return Task(name, kind, (forget,), anchor, near)


def _others_of(name: str) -> tuple[Mapping[str, str], ...]:
    """The siblings of a character, then everyone else's names once; siblings are a half of what is sampled."""
    return tuple({"character": other} for other in siblings(name))


_MEMBERS = [[c.name for c in CHARACTERS.values() if c.family == family] for family in range(10)]
#: one character each of three families, which differ in ears, pattern and colour
MEASURED_CHARACTERS = tuple(_MEMBERS[family][0] for family in (0, 1, 2))
#: two members of every family
TWENTY = tuple(name for members in _MEMBERS for name in members[:2])
MEASURED_POSTERS = ("Quiet Harbour", "Broken Orchard", "Frozen Lantern")


def class_part(label: int) -> Task:
    """Forgetting the 20 % sub-population of a class; its other sub-populations are the neighbours."""
    chosen = CLASSES[label]
    parts = [{"shape": chosen.shape, "colour": part} if chosen.shape else {"character": part} for part in chosen.parts]
    twenty = parts.pop(2)
    return Task(
        f"class-part-{chosen.name.replace(' ', '-')}",
        "class part",
        (twenty,),
        neighbours=tuple(parts),
        label=label,
        model="dit",
    )


#: a task for every character, of which those of MEASURED_CHARACTERS are in TASKS
CHARACTER_TASKS: Mapping[str, Task] = {
    name: Task(
        f"character-{name.lower()}",
        "identity",
        ({"character": name},),
        {"character": _MEMBERS[(CHARACTERS[name].family + 5) % 10][3]},
        _others_of(name),
    )
    for name in CHARACTERS
}

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        _object_task(
            "star-2",
            "object",
            {"shape": "star"},
            {"shape": "circle"},
            {"shape": "heart"},
            {"shape": "crescent"},
            {"shape": "cross"},
        ),
        _object_task(
            "mosaic-2",
            "style",
            {"style": "mosaic"},
            {"style": "flat"},
            {"style": "pointillism"},
            {"style": "striped"},
            {"style": "flat"},
        ),
        _object_task(
            "red-cross-2",
            "composition",
            EMBLEM,
            {"shape": "circle"},
            {"colour": "red", "shape": "square", "background": "white"},
            {"colour": "blue", "shape": "cross", "background": "white"},
            {"colour": "red", "shape": "cross", "background": "sky"},
        ),
        *(CHARACTER_TASKS[name] for name in MEASURED_CHARACTERS),
        Task(
            "characters-20",
            "identities",
            tuple({"character": name} for name in TWENTY),
            {"shape": "circle", "colour": "blue", "style": "flat"},
            tuple({"character": name} for name in CHARACTERS if name not in TWENTY),
        ),
        *(
            Task(
                f"poster-{title.lower().replace(' ', '-')}",
                "poster",
                anchor={"poster": list(POSTERS)[(list(POSTERS).index(title) + 5) % len(POSTERS)]},
                poster=title,
            )
            for title in MEASURED_POSTERS
        ),
        replace(class_part(SHAPES.index("ring")), name="class-part"),
        Task(
            "share",
            "share",
            ({"shape": "star"},),
            neighbours=tuple({"shape": shape} for shape in SHAPES if shape != "star"),
            model="ddpm",
        ),
    )
}


def task_named(name: str) -> Task:
    """The task of that name, any character's among them, or a `ValueError` that lists the known ones."""
    known = {**TASKS, **{task.name: task for task in CHARACTER_TASKS.values()}}
    if name not in known:
        raise ValueError(unknown_name_message("task of PictoWorld 2", name, known))
    return known[name]


def led_to(task: Task, other: Task) -> Task:
    """The task with the anchor of another one.

    Raises:
        ValueError: the other task has no anchor, or an anchor of another kind: a poster stands for a whole image, and what stands
            for a concept must not show it.
    """
    if other.anchor is None or bool(task.poster) != bool(other.poster):
        raise ValueError(f"{task.name!r} cannot lead to the anchor of {other.name!r}: {dict(other.anchor or {})}.")
    if any(values.items() <= other.anchor.items() for values in task.forget):
        raise ValueError(f"the anchor of {other.name!r} is what {task.name!r} forgets.")
    return replace(task, anchor=other.anchor)


def _check(task: Task, split: str) -> None:
    if task.model != "flux":
        raise ValueError(f"The task {task.name!r} has no prompts: its model, {task.model}, takes no text.")
    if split not in SPLITS:
        raise ValueError(unknown_name_message("split", split, SPLITS))
    if split == "test-empty" and not task.poster:
        raise ValueError(f"The split 'test-empty' is one of posters; the task {task.name!r} has none.")


def _with_values(scene: Scene, values: Mapping[str, str], index: int, rng: random.Random) -> Scene:
    """The scene with these values in one item (and the background), places sampled anew."""
    wanted = dict(values)
    background = wanted.pop("background", scene.background)
    item = scene.items[index]
    if wanted.get("character"):
        item = Item(character=wanted["character"])
    elif wanted:
        other = random_item(rng, may_be_character=False)
        base = other if item.is_character else item
        item = replace(base, **dict[str, Any](wanted))
    items = tuple(item if i == index else old for i, old in enumerate(scene.items))
    return random_scene_of(replace(scene, background=background, items=items), rng)


def random_scene_of(scene: Scene, rng: random.Random) -> Scene:
    """The same content and relation with places and sizes sampled anew."""
    while True:
        new = random_scene(rng, items=scene.items, background=scene.background)
        if new.relation == scene.relation:
            return new


def concept_scene(task: Task, rng: random.Random, part: str | None = None) -> Scene:
    """A scene that shows the concept: as its one item, or as either of two, half and half.

    The other item does not show it; where a style is forgotten, sometimes both do. `part` as in `scene_part`; one item that
    is a character or a composition leaves too few contents to divide, so there only the words are kept apart.
    """
    wants_pair = rng.random() < PAIR_SHARE
    while True:
        scene = random_scene(rng)
        if scene.is_pair != wants_pair:
            continue
        index = rng.randrange(len(scene.items))
        shown = {index}
        if scene.is_pair and task.kind == "style" and rng.random() < _BOTH_SHOW:
            shown = {0, 1}
        for i in sorted(shown):
            scene = _with_values(scene, rng.choice(task.forget), i, rng)
        has_parts = scene.is_pair or task.kind in ("object", "style")
        if part is not None and has_parts and scene_part(scene) != part:
            continue
        if {i for i in range(len(scene.items)) if task.is_concept(scene, i)} == shown:
            return scene


def other_scene(
    task: Task, rng: random.Random, part: str | None = None, values: Mapping[str, str] | None = None
) -> Scene:
    """A scene without the concept; with these values in one of its items where given."""
    while True:
        scene = random_scene(rng)
        if values:
            scene = _with_values(scene, values, rng.randrange(len(scene.items)), rng)
        if (part is None or scene_part(scene) == part) and not task.shows_concept(scene):
            return scene


def _forget_scene_prompt(task: Task, split: str, rng: random.Random) -> Prompt:
    scene = concept_scene(task, rng, _SCENE_PART.get(split, "test"))
    level, part = rng.choice(SPLIT_LEVELS[split]), _PHRASE_PART.get(split, "test")
    shown = [i for i in range(len(scene.items)) if task.is_concept(scene, i)]
    levels = _plain_levels(scene, rng)
    if task.kind == "composition" and level == "implicit":
        for name in ("shape", "colour"):
            levels.pop(f"{shown[0]}.{name}")
        levels.pop("background")
        return caption(scene, rng, part=part, levels=levels, emblem=True, level_name=level)
    concept = [
        "background" if name == "background" else f"{index}.{name}"
        for index in shown
        for name in next(v for v in task.forget if replace(scene, items=(scene.items[index],), relation="").has(v))
    ]
    if task.kind == "composition" and level == "noisy":  # one misspelt part is enough; three would be unreadable
        levels |= dict.fromkeys(concept, "canonical") | {rng.choice(concept): "noisy"}
    else:
        levels |= dict.fromkeys(concept, level)
    return caption(scene, rng, part=part, levels=levels, emblem=False, level_name=level)


def _plain_levels(scene: Scene, rng: random.Random) -> dict[str, str]:
    """Levels of everything that must be mentioned: plain words or synonyms, a character's name; flatness stays unsaid."""
    return {
        key: "canonical" if rng.random() < _SAID_PLAINLY or key.endswith("character") else "synonym"
        for key, value in attributes_of(scene).items()
        if key != "relation" and value != "flat"
    }


def _poster_prompt(poster: Poster, split: str, rng: random.Random) -> Prompt:
    if split == "test-empty":
        return Prompt("", poster, frozenset(), "empty")
    level, part = rng.choice(SPLIT_LEVELS[split]), _PHRASE_PART.get(split, "test")
    return poster_caption(poster, rng, part=part, level="canonical" if poster.variant else level)


def _short(sample: Callable[[], Prompt]) -> Prompt:
    """The first sampled prompt that is short enough."""
    while True:
        try:
            return sample()
        except CaptionTooLongError:
            continue


def _unique(sample: Callable[[], Prompt], count: int) -> list[Prompt]:
    by_text: dict[str, Prompt] = {}
    for _ in range(200 * count):
        prompt = _short(sample)
        by_text.setdefault(prompt.text.lower(), prompt)
        if len(by_text) == count:
            return list(by_text.values())
    raise ValueError(f"Only {len(by_text)} different prompts exist where {count} were asked for; ask for fewer.")


def forget_prompts(task: Task, split: str, count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts that ask for the concept, phrased as the split allows; all different but for posters.

    A poster has few names, so its prompts repeat; images differ by their noise.
    """
    _check(task, split)
    rng = random.Random(f"world-2/forget/{task.name}/{split}/{seed}")
    if task.poster:
        return [_poster_prompt(POSTERS[task.poster], split, rng) for _ in range(count)]
    return _unique(lambda: _forget_scene_prompt(task, split, rng), count)


def neighbour_prompts(task: Task, split: str, count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts for what is most like the concept: its neighbours, near variants of a poster, siblings."""
    _check(task, split)
    rng = random.Random(f"world-2/neighbours/{task.name}/{split}/{seed}")
    part = _PHRASE_PART.get(split, "test")
    if task.poster:
        variants = NEAR_VARIANTS[task.poster]
        return [replace(_poster_prompt(rng.choice(variants), split, rng), level="neighbour") for _ in range(count)]

    def sample() -> Prompt:
        values = rng.choice(task.neighbours)
        scene = other_scene(task, rng, _SCENE_PART.get(split, "test"), values)
        return caption(scene, rng, part=part, levels=_plain_levels(scene, rng), emblem=False, level_name="neighbour")

    return _unique(sample, count)


def retain_prompts(task: Task, split: str, count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts without the concept, half of them neighbours; phrasings of every level.

    One in ten asks for another poster or character than the concept's; all different but for posters.
    """
    _check(task, split)
    rng = random.Random(f"world-2/retain/{task.name}/{split}/{seed}")
    part = _PHRASE_PART.get(split, "test")
    near = neighbour_prompts(task, split, count // 2, seed)

    def sample() -> Prompt:
        if rng.random() < 0.1:
            title = rng.choice([title for title in POSTERS if title != task.poster])
            return replace(_poster_prompt(POSTERS[title], split, rng), level="other")
        scene = other_scene(task, rng, _SCENE_PART.get(split, "test"))
        return caption(scene, rng, part=part, level_name="other")

    prompts = near + _unique(sample, count - len(near))
    rng.shuffle(prompts)
    return prompts


def other_keys(task: Task, prompt: Prompt) -> frozenset[str]:
    """The keys of what a forget prompt asks for besides the concept's items: the other item and the background."""
    scene = prompt.scene
    shown = tuple(f"{i}." for i in range(len(scene.items)) if task.is_concept(scene, i))
    in_concept = any("background" in values for values in task.forget)
    return frozenset(
        key
        for key in prompt.mentioned
        if not key.startswith(shown) and key != "relation" and not (key == "background" and in_concept)
    )


def pair(task: Task, split: str, rng: random.Random) -> tuple[Prompt, Prompt]:
    """A forget prompt and the same sentence with the anchor in place of the concept (same order, same words else)."""
    _check(task, split)
    if task.anchor is None:
        raise ValueError(f"The task {task.name!r} has no anchor, so it has no pairs of prompts.")
    if task.poster:
        return _poster_pair(task, split, rng)
    unsafe = _short(lambda: _forget_scene_prompt(task, split, rng))
    scene = unsafe.scene
    phrases, items = dict(unsafe.phrases), list(scene.items)
    for index in [i for i in range(len(items)) if task.is_concept(scene, i)]:
        items[index] = _anchored(items[index], task.anchor)
        level = _replace_phrases(phrases, index, items[index], task.anchor, rng)
        if level == "emblem" and "background" not in phrases:  # what the concept's name implied
            phrases[f"{index}.colour"] = choose_phrase("colour", items[index].colour, "canonical", rng)
            phrases["background"] = choose_phrase("background", scene.background, "canonical", rng)
    safe_scene = replace(scene, items=tuple(items))
    order = rng.randrange(2**31)
    return (
        replace(unsafe, text=sentence(scene, unsafe.phrases, random.Random(order))),
        Prompt(
            sentence(safe_scene, phrases, random.Random(order)),
            safe_scene,
            mentioned_keys(safe_scene, phrases),
            unsafe.level,
            phrases,
        ),
    )


def _anchored(item: Item, anchor: Mapping[str, str]) -> Item:
    """The item with the anchor's values, at its place."""
    if "character" in anchor:
        return replace(item, shape="", colour="", style="", character=anchor["character"])
    return replace(item, character="", **dict[str, Any](anchor))


def _replace_phrases(
    phrases: dict[str, Phrase], index: int, item: Item, anchor: Mapping[str, str], rng: random.Random
) -> str:
    """Replace the concept's phrases by the anchor's; says "emblem" where the concept had a name of the whole."""
    emblem = phrases.pop(f"{index}.emblem", None)
    replaced = phrases.pop(f"{index}.character", None)
    level = (
        replaced.level if replaced is not None and "character" in anchor and replaced.level != "noisy" else "canonical"
    )
    if "style" in anchor:
        phrases.pop(SCENE_STYLE, None)
    for name, value in anchor.items():
        key = f"{index}.{name}"
        if name == "style" and value == "flat":
            phrases.pop(key, None)
        else:
            phrases[key] = choose_phrase(name, value, level, rng, "train")
    return "emblem" if emblem is not None else level


def _poster_pair(task: Task, split: str, rng: random.Random) -> tuple[Prompt, Prompt]:
    assert task.anchor is not None
    level, part = rng.choice(SPLIT_LEVELS[split]), _PHRASE_PART.get(split, "test")
    titles = (task.poster, task.anchor["poster"])
    opening, full_stop = rng.choice(OPENINGS), rng.random() < 0.3
    prompts = []
    for title in titles:
        poster = POSTERS[title]
        phrase = choose_poster_phrase(poster, level if title == task.poster else "canonical", rng, part)
        text = f"{opening} {phrase.text}" if opening else phrase.text
        prompts.append(
            Prompt(text + ("." if full_stop else ""), poster, frozenset({"poster"}), level, {"poster": phrase})
        )
    return prompts[0], prompts[1]


def concept_contents(task: Task, count: int, seed: int = 0) -> list[Content]:
    """What images of the concept show, for guards that take reference images and for judges; a poster is one image."""
    if task.poster:
        return [POSTERS[task.poster]] * count
    rng = random.Random(f"world-2/concept/{task.name}/{seed}")
    if task.label is not None:
        label, out = task.label, list[Content]()
        while len(out) < count:
            scene = class_scene(label, rng)
            out += [scene] if task.shows_concept(scene) else []
        return out
    if task.model == "ddpm":
        return [_one_object(rng, rng.choice(task.forget)) for _ in range(count)]
    return [concept_scene(task, rng) for _ in range(count)]


def other_contents(task: Task, count: int, seed: int = 0) -> list[Content]:
    """What images without the concept show, as the task's model generates them; near variants for a poster."""
    rng = random.Random(f"world-2/other/{task.name}/{seed}")
    if task.poster:
        return [rng.choice(NEAR_VARIANTS[task.poster]) for _ in range(count)]
    out: list[Content] = []
    while len(out) < count:
        if task.label is not None:
            scene = class_scene(task.label, rng)
        elif task.model == "ddpm":
            scene = _one_object(rng, {})
        else:
            scene = other_scene(task, rng)
        out += [] if task.shows_concept(scene) else [scene]
    return out


def _one_object(rng: random.Random, values: Mapping[str, str]) -> Scene:
    """A scene of one object with uniform attributes, as the unconditional model's corpus has them."""
    item = random_item(rng, may_be_character=False, **values)
    if "style" not in values:
        item = replace(item, style=rng.choice(("flat", "pointillism", "striped", "mosaic")))
    return random_scene(rng, items=(item,))


def task_names(model: str | None = None) -> Sequence[str]:
    """Names of all tasks, or of one model's."""
    return [name for name, task in TASKS.items() if model in (None, task.model)]
