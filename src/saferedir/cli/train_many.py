"""`saferedir train saferedir-many`: one SafeRedir guard for many concepts, or more concepts for one that is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saferedir.cli.common import console, errors, escape, load_model, named_values, new_table, progress_bar
from saferedir.cli.options import CallArguments, ModelVariant, Revision, RolloutBatch, RolloutGuidance, RolloutSteps
from saferedir.cli.output import MEGABYTE, SUMMARY, check_guard_folder, check_space, holds_out, write_json
from saferedir.cli.recipes import WORLD
from saferedir.cli.stopping import GOES_ON, on_stop
from saferedir.cli.train_edits import Device, Dtype, Model, Out, Seed
from saferedir.utils.packaged import library_version

if TYPE_CHECKING:
    from saferedir.guards.saferedir_many import SafeRedirMany


@holds_out
def saferedir_many(
    out: Out,
    pairs: Annotated[
        list[str],
        typer.Option(metavar="CONCEPT=FILE", help="Pairs of a concept, as of `train saferedir`; once a concept."),
    ],
    start: Annotated[
        str | None, typer.Option("--start", metavar="GUARD", help="A guard of many concepts that these are added to.")
    ] = None,
    model: Model = WORLD,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; default: 900.")] = None,
    rollouts: Annotated[
        int | None,
        typer.Option(min=4, help="Images a concept, half of them benign and made once for all; default: 640."),
    ] = None,
    held_out_rollouts: Annotated[
        int | None, typer.Option(min=4, help="The same for the calibration; default: 420.")
    ] = None,
    rollout_steps: RolloutSteps = None,
    rollout_batch: RolloutBatch = None,
    guidance: RolloutGuidance = None,
    call: CallArguments = None,
    distinct: Annotated[
        bool,
        typer.Option(
            "--distinct", help="The concepts exclude one another, as characters do: each learns from all others."
        ),
    ] = False,
    seed: Seed = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the guard at --out; write one with weak concepts.")
    ] = False,
    dtype: Dtype = None,
    model_variant: ModelVariant = None,
    revision: Revision = None,
    device: Device = "auto",
) -> None:
    """Train one SafeRedir guard for many concepts (arXiv:2601.08623), or add concepts to one.

    With --start the concepts that the guard has stay as they are, bit for bit; only the new ones are trained. A run that was
    killed goes on where it stopped when the same command is given again. No guard is written where the image side of a new
    concept cannot tell it from the rest on held-out images, unless --force is given.

    Give --distinct where an image of one concept shows another only if its prompt asks for both, as of characters, artists or
    logos: prompts and images of one are then benign for all others. Not for colours, of which any image has one unasked.

    Example:  `saferedir train saferedir-many --pairs star=star.jsonl --pairs ring=ring.jsonl --out runs/shapes`

    Example:  `saferedir train saferedir-many --start runs/shapes --pairs fox=fox.jsonl --out runs/shapes-2`
    """
    files = dict(_named_file(text) for text in pairs)
    if len(files) < len(pairs):
        raise typer.BadParameter("a concept is given twice.", param_hint="--pairs")
    check_guard_folder(out, force)
    check_space(out, 1024 * MEGABYTE)
    from saferedir.guards.base import Guard
    from saferedir.guards.saferedir_many import SafeRedirMany
    from saferedir.training.saferedir.dataset import read_pairs
    from saferedir.training.saferedir.many import train_saferedir_many
    from saferedir.training.saferedir.train_config import TrainConfig

    rows = {concept: read_pairs(path) for concept, path in files.items()}
    first: Any = None if start is None else Guard.from_pretrained(start)
    if first is not None and not isinstance(first, SafeRedirMany):
        raise typer.BadParameter(f"{start} is a {first.method} guard, not one of many concepts.", param_hint="--start")
    given: dict[str, Any] = {
        "steps": steps, "rollouts": rollouts, "held_out_rollouts": held_out_rollouts, "rollout_steps": rollout_steps,
        "rollout_batch": rollout_batch, "guidance_scale": guidance,
    }  # fmt: skip
    chosen = {name: value for name, value in given.items() if value is not None}
    config = TrainConfig(**chosen, call=named_values(call or [], "--call"), seed=seed)
    pipe = load_model(model, dtype=dtype, device=device, variant=model_variant, revision=revision)
    if out.with_name(out.name + ".work").exists():
        errors.print(f"An earlier run left {out}.work; going on from there.", soft_wrap=True, highlight=False)
    on_stop(GOES_ON)
    with progress_bar() as bar:
        guard = train_saferedir_many(
            pipe,
            rows,
            out,
            start=first,
            config=config,
            progress=bar,
            overwrite=force,
            keep_weak=force,
            distinct=distinct,
        )
    _show(guard, out, model)


def _named_file(text: str) -> tuple[str, Path]:
    name, sign, file = text.partition("=")
    if not sign or not name.strip() or not file:
        raise typer.BadParameter(f"{text!r} is not CONCEPT=FILE.", param_hint="--pairs")
    return name.strip(), Path(file).expanduser()


def _show(guard: SafeRedirMany, out: Path, model: str) -> None:
    """Write the summary of a finished guard and print what each concept was measured at."""
    values = guard.config
    measured = {concept: record.get("measured", {}) for concept, record in values.calibration.items()}
    summary = {
        "made_by": f"saferedir {library_version()}", "method": guard.method, "model": model,
        "concepts": list(values.concepts), "measured": measured,
    }  # fmt: skip
    write_json(out / SUMMARY, summary)
    table = new_table(
        f"{len(values.concepts)} concepts, held out", "concept", ">prompt recall", ">image recall", ">distance"
    )
    for concept, record in measured.items():
        row = [f"{record[key]:.3f}" if key in record else "–" for key in ("prompt_recall", "image_recall", "distance")]
        table.add_row(escape(concept), *row)
    console.print(table)
    console.print(f"Guard written to {out}", soft_wrap=True, highlight=False)
