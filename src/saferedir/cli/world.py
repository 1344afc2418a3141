"""`saferedir pictoworld`: what the embedded world can show, and prompt pairs for its tasks.

The world is made by `python -m tools.pictoworld`, from a clone.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Any

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
    task: Annotated[str, typer.Option(help="star, pointillism or emblem.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON-lines file to write.")],
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of an unsafe and a safe prompt.")] = 1200,
    benign: Annotated[int, typer.Option(min=0, help="Benign prompts.")] = 800,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the prompts.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the pairs file at --out.")] = False,
) -> None:
    """Write training prompts for a guard: pairs that differ in the concept only, and benign prompts.

    All come from the guard-train split, so that no test phrasing is among them.

    Example:  `saferedir pictoworld pairs --task star --out star.jsonl`
    """
    from saferedir.pictoworld.tasks import retain_prompts, task_named
    from saferedir.training.saferedir.dataset import Pair

    chosen = task_named(task)
    _refuse_foreign_pairs(out)
    refuse_finished(out, out.exists(), force)
    check_space(out, MEGABYTE)
    rows = [Pair(unsafe, safe) for unsafe, safe in _unique_pairs(chosen, pairs, seed)]
    if benign:
        rows += [Pair(None, prompt.text) for prompt in retain_prompts(chosen, "guard-train", benign, seed)]
    save_pairs(rows, out)
    console.print(f"{pairs} pairs and {benign} benign prompts written to {out}", soft_wrap=True, highlight=False)


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


def _unique_pairs(task: Any, count: int, seed: int) -> list[tuple[str, str]]:
    """Different pairs that fit the text encoder and do differ."""
    from saferedir.pictoworld.captions import MAX_CHARACTERS
    from saferedir.pictoworld.tasks import pair

    rng = random.Random(f"pairs/{task.name}/{seed}")
    pairs: dict[str, tuple[str, str]] = {}
    for _ in range(200 * count):
        unsafe, safe = (prompt.text for prompt in pair(task, "guard-train", rng))
        if unsafe.lower() != safe.lower() and max(len(unsafe), len(safe)) <= MAX_CHARACTERS:
            pairs.setdefault(unsafe.lower(), (unsafe, safe))
        if len(pairs) == count:
            return list(pairs.values())
    raise ValueError(f"Only {len(pairs)} different pairs exist where {count} were asked for; ask for fewer.")


def _moved(name: str) -> None:
    """Leave the old name of a maker's command, to say where it is now."""
    message = f"`saferedir pictoworld {name}` is not in the package; it is run from a clone: python -m tools.pictoworld {name}"
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}

    @world_app.command(name, hidden=True, help=message, context_settings=settings)
    def moved() -> None:
        raise ValueError(message)


for _name in ("train", "guards", "report"):
    _moved(_name)
