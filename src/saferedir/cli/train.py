"""`saferedir train`: one command per method that trains. The training itself is in the method's own folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from saferedir.cli.common import console, errors, escape, load_model, new_table, progress_bar
from saferedir.cli.output import (
    MEGABYTE,
    SUMMARY,
    OutputError,
    check_space,
    check_writable,
    write_json,
)
from saferedir.packaged import library_version

train_app = typer.Typer(name="train", help="Train a guard.", no_args_is_help=True, rich_markup_mode="markdown")


@train_app.callback()
def _group() -> None:
    """Train a guard for a model from pairs of prompts."""


@train_app.command(no_args_is_help=True)
def saferedir(
    pairs: Annotated[
        Path,
        typer.Option(metavar="FILE", help='JSON lines: {"unsafe": …, "safe": …}, or {"safe": …} for a benign one.'),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the finished guard.")],
    concept: Annotated[str, typer.Option(metavar="NAME", help="What must not appear, in a word or two.")],
    model: Annotated[
        str, typer.Option(metavar="ID", help="pictoworld, a diffusers folder, or a hub id.")
    ] = "pictoworld",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 900,
    rollouts: Annotated[
        int, typer.Option(min=4, help="Pictures drawn for training; two thirds as many are held out.")
    ] = 640,
    rollout_steps: Annotated[int, typer.Option(min=1, help="Sampling steps of those pictures.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = 0,
    anchor: Annotated[
        str | None, typer.Option(metavar="PROMPT", help="Last resort when redirection fails; default: a safe prompt.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: float32.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
) -> None:
    """Train a SafeRedir guard (arXiv:2601.08623): draw pictures, fit the redirector, calibrate its thresholds.

    A run that was killed goes on where it stopped when the same command is given again.

    Example:  `saferedir train saferedir --pairs star.jsonl --concept star --out runs/star`
    """
    out = out.expanduser().resolve()
    if not concept.strip():
        raise typer.BadParameter("the concept needs a name.", param_hint="--concept")
    _check_guard_folder(out)
    check_writable(out)
    check_space(out, 256 * MEGABYTE)
    from saferedir.guards.saferedir.dataset import read_pairs
    from saferedir.guards.saferedir.training import TrainConfig, train_saferedir

    rows = read_pairs(pairs)
    pipe = load_model(model, dtype=dtype, device=device)
    held_out = max(2, round(0.65 * rollouts))
    config = TrainConfig(
        steps=steps,
        rollouts=rollouts,
        held_out_rollouts=held_out,
        rollout_steps=rollout_steps,
        evaluate_every=max(1, min(200, steps // 2)),
        seed=seed,
        anchor=anchor,
    )
    check_space(out, 128 * MEGABYTE + (rollouts + held_out) * rollout_steps * _bytes_per_frame(pipe))
    work = out.with_name(out.name + ".work")
    if work.exists():
        errors.print(f"An earlier run left {work}; going on from there.", soft_wrap=True, highlight=False)
    with progress_bar() as bar:
        guard = train_saferedir(pipe, rows, out, concept=concept, config=config, progress=bar)
    values = guard.config
    summary = {
        "made_by": f"saferedir {library_version()}",
        "method": guard.method,
        "concept": values.concept,
        "model": model,
        "thresholds": {"prompt": values.prompt_threshold, "image": values.image_threshold},
        "measured": values.measured,
        "training": values.training,
    }
    write_json(out / SUMMARY, summary)
    _tables(summary)
    console.print(f"Guard written to {out}", soft_wrap=True, highlight=False)


def _check_guard_folder(out: Path) -> None:
    from saferedir.packaged import GUARD_CONFIG

    if out.is_file():
        raise OutputError(f"{out} is a file; choose another --out.")
    if out.is_dir() and any(out.iterdir()) and not (out / GUARD_CONFIG).is_file():
        raise OutputError(f"{out} is not empty and holds no guard; choose another --out.")


def _bytes_per_frame(pipe: Any) -> int:
    """Three float16 latents, as the roll-outs keep them."""
    unet = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    size = getattr(getattr(unet, "config", None), "sample_size", None)
    side = size if isinstance(size, int) else 64
    return 3 * 2 * 4 * side * side


def _tables(summary: dict[str, Any]) -> None:
    thresholds = new_table("Thresholds", "verdict", ">score")
    for name, value in summary["thresholds"].items():
        thresholds.add_row(name, f"{value:.3f}")
    console.print(thresholds)
    measured = new_table(
        "Held-out measurements (optimistic: also used to choose checkpoint and thresholds)", "what", ">value"
    )
    for name, value in summary["measured"].items():
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        measured.add_row(escape(name.replace("_", " ")), escape(text))
    console.print(measured)
