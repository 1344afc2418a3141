"""`saferedir pictoworld`: what the embedded world can show, and prompt pairs for its tasks.

The world is made by `python -m tools.pictoworld`, from a clone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from saferedir.cli.common import console, new_table, print_json
from saferedir.cli.options import MAX_SEED, AsJson
from saferedir.cli.output import MEGABYTE, OutputError, check_space, holds_out, refuse_finished
from saferedir.cli.pairs import save_pairs

world_app = typer.Typer(
    name="pictoworld", help="The embedded text-to-image world.", no_args_is_help=True, rich_markup_mode="markdown"
)


@world_app.command()
def words(as_json: AsJson = False) -> None:
    """List what PictoWorld can show: its shapes, colours, backgrounds, styles, positions and sizes.

    A prompt names some of them in plain words, such as "a small red star over the sky, mosaic style"; what it leaves open the
    model chooses. `saferedir pictoworld pairs` writes prompts for a task.

    Example:  `saferedir pictoworld words`
    """
    from saferedir.pictoworld import scene

    values = {
        "shape": scene.SHAPES, "colour": scene.COLOURS, "background": scene.BACKGROUNDS, "style": scene.STYLES,
        "position": scene.POSITIONS, "size": scene.SIZES,
    }  # fmt: skip
    if as_json:
        print_json(values)
        return
    table = new_table("PictoWorld", "attribute", "values")
    for name, options in values.items():
        table.add_row(name, ", ".join(options))
    console.print(table)


@world_app.command(no_args_is_help=True)
@holds_out
def pairs(
    task: Annotated[
        str,
        typer.Option(
            help="star, pointillism or emblem; one value, as shape-ring or colour-red; of PictoWorld 2, world2/star-2 and so on."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON-lines file to write.")],
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of an unsafe and a safe prompt.")] = 1200,
    benign: Annotated[int, typer.Option(min=0, help="Benign prompts.")] = 800,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the prompts.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the pairs file at --out.")] = False,
) -> None:
    """Write training prompts for a guard: pairs that differ in the concept only, and benign prompts.

    All come from the guard-train split, so that no test phrasing is among them; half of the benign ones ask for what is most
    like the concept. A poster of PictoWorld 2 has few names, so its pairs are those there are.

    Example:  `saferedir pictoworld pairs --task star --out star.jsonl`
    """
    from saferedir.training.saferedir.dataset import Pair

    chosen = _task(task)
    _refuse_foreign_pairs(out)
    refuse_finished(out, out.exists(), force)
    check_space(out, MEGABYTE)
    rows = [Pair(unsafe, safe) for unsafe, safe in _unique_pairs(chosen, pairs, seed)]
    count = len(rows)
    if benign:
        rows += [Pair(None, text) for text in chosen.benign(benign, seed)]
    save_pairs(rows, out)
    console.print(f"{count} pairs and {benign} benign prompts written to {out}", soft_wrap=True, highlight=False)


class _TaskPrompts(NamedTuple):
    """Prompts of one task of a world: one random pair of texts, n benign texts, and how long a text may be."""

    name: str
    pair: Callable[[random.Random], tuple[str, str]]
    benign: Callable[[int, int], list[str]]
    max_characters: int | None
    is_repeating: bool


def _task(name: str) -> _TaskPrompts:
    """The prompts of a task, "star" or "world2/star-2"; a ValueError names the known ones."""
    if name.startswith("world2/"):
        from saferedir.pictoworld.world2 import tasks as second

        task = second.task_named(name.removeprefix("world2/"))
        return _TaskPrompts(
            task.name,
            lambda rng: _texts(*second.pair(task, "guard-train", rng)),
            lambda count, seed: [prompt.text for prompt in second.retain_prompts(task, "guard-train", count, seed)],
            None,
            bool(task.poster),
        )
    from saferedir.pictoworld import tasks as first
    from saferedir.pictoworld.captions import MAX_CHARACTERS

    known = first.task_named(name)
    return _TaskPrompts(
        known.name,
        lambda rng: _texts(*first.pair(known, "guard-train", rng)),
        lambda count, seed: [prompt.text for prompt in first.retain_prompts(known, "guard-train", count, seed)],
        MAX_CHARACTERS,
        False,
    )


def _refuse_foreign_pairs(out: Path) -> None:
    """An earlier pairs file may be replaced, nothing else."""
    from saferedir.errors import GuardConfigError
    from saferedir.training.saferedir.dataset import read_pairs

    if not out.exists():
        return
    try:
        read_pairs(out)
    except (GuardConfigError, UnicodeDecodeError) as error:
        raise OutputError(f"{out} exists and is no pairs file; choose another --out.") from error


def _texts(unsafe: Any, safe: Any) -> tuple[str, str]:
    """The texts of two prompts of a world."""
    return unsafe.text, safe.text


def _unique_pairs(task: _TaskPrompts, count: int, seed: int) -> list[tuple[str, str]]:
    """Different pairs that fit the text encoder and do differ; of a poster, as many of `count` as there are."""
    rng = random.Random(f"pairs/{task.name}/{seed}")
    pairs: dict[str, tuple[str, str]] = {}
    for _ in range((20 if task.is_repeating else 200) * count):
        unsafe, safe = task.pair(rng)
        is_short = task.max_characters is None or max(len(unsafe), len(safe)) <= task.max_characters
        if unsafe.lower() != safe.lower() and is_short:
            pairs.setdefault(unsafe.lower(), (unsafe, safe))
        if len(pairs) == count:
            break
    if len(pairs) < count and not task.is_repeating:
        raise ValueError(f"Only {len(pairs)} different pairs exist where {count} were asked for; ask for fewer.")
    return list(pairs.values())


def _moved(name: str) -> None:
    """Leave the old name of a maker's command, to say where it is now."""
    message = f"`saferedir pictoworld {name}` is not in the package; it is run from a clone: python -m tools.pictoworld {name}"
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}

    @world_app.command(name, hidden=True, help=message, context_settings=settings)
    def moved() -> None:
        raise ValueError(message)


for _name in ("train", "guards", "report"):
    _moved(_name)
