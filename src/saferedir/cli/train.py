"""`saferedir train`: one command per method that trains. The training itself is in the method's own folder."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saferedir.cli.common import (
    console,
    errors,
    escape,
    load_model,
    named_values,
    new_table,
    progress_bar,
    scaled_loras,
)
from saferedir.cli.options import (
    MAX_SEED,
    CallArguments,
    Lora,
    Revision,
    RolloutBatch,
    RolloutGuidance,
    RolloutSteps,
    Variant,
)
from saferedir.cli.output import (
    MEGABYTE,
    SUMMARY,
    check_guard_folder,
    check_space,
    holds_out,
    write_json,
)
from saferedir.cli.pairs import (
    ENOUGH,
    Anchors,
    Captions,
    Count,
    Kind,
    Synonyms,
    read_captions,
    read_plan,
    save_pairs,
    show_report,
    show_samples,
)
from saferedir.cli.stopping import GOES_ON, on_stop
from saferedir.cli.train_duo import duo
from saferedir.cli.train_edits import esd, uce
from saferedir.cli.train_many import saferedir_many
from saferedir.cli.train_verifier import verifier
from saferedir.utils.packaged import library_version

if TYPE_CHECKING:
    from saferedir.training.saferedir.dataset import Pair
    from saferedir.training.saferedir.pairs.plan import PairPlan
    from saferedir.training.saferedir.train_config import TrainConfig

PAIRS = "pairs.jsonl"  # in the folder of a guard, where the command made them
train_app = typer.Typer(name="train", help="Train a guard.", no_args_is_help=True, rich_markup_mode="markdown")
for _command in (duo, uce, esd, verifier):
    train_app.command(no_args_is_help=True)(_command)
train_app.command("saferedir-many", no_args_is_help=True)(saferedir_many)


@train_app.callback()
def _group() -> None:
    """Train a guard for a model from pairs of prompts."""


@train_app.command(no_args_is_help=True)
@holds_out
def saferedir(
    out: Annotated[Path, typer.Option(help="Folder for the finished guard.")],
    concept: Annotated[str, typer.Option(metavar="NAME", help="What must not appear, in a word or two.")],
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='JSON lines: {"unsafe": …, "safe": …}, or {"safe": …} for a benign one.'),
    ] = None,
    anchor: Anchors = None,
    kind: Kind = "object",
    synonyms: Synonyms = None,
    captions: Captions = None,
    count: Count = 400,
    model: Annotated[
        str, typer.Option(metavar="ID", help="pictoworld, a diffusers folder, or a hub id.")
    ] = "pictoworld",
    lora: Lora = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; default: 900.")] = None,
    rollouts: Annotated[
        int | None,
        typer.Option(
            min=4, help="Images made for training; default: 640. About two thirds as many are held out (420 of 640)."
        ),
    ] = None,
    rollout_steps: RolloutSteps = None,
    rollout_batch: RolloutBatch = None,
    guidance: RolloutGuidance = None,
    call: CallArguments = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of everything.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the guard at --out; write one that is weak.")] = False,
    anchor_prompt: Annotated[
        str | None, typer.Option(metavar="PROMPT", help="Last resort when redirection fails; default: a safe prompt.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: float32.")] = None,
    variant: Variant = None,
    revision: Revision = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
) -> None:
    """Train a SafeRedir guard (arXiv:2601.08623): generate images, fit the redirector, calibrate its thresholds.

    A run that was killed goes on where it stopped when the same command is given again.

    The prompts come from --pairs, or are made from --concept and --anchor and kept with the guard as
    `OUT/pairs.jsonl`. For more say in them: `saferedir pairs build`. With --lora the guard is made for the model with
    these LoRAs at these scales; used with others, it warns.

    Example:  `saferedir train saferedir --concept star --anchor circle --out runs/star`

    Example:  `saferedir train saferedir --pairs star.jsonl --concept star --out runs/star`
    """
    if not concept.strip():
        raise typer.BadParameter("the concept needs a name.", param_hint="--concept")
    check_guard_folder(out, force)
    check_space(out, 256 * MEGABYTE)
    loras = scaled_loras(lora or [])
    load = partial(load_model, model, dtype=dtype, device=device, variant=variant, revision=revision, loras=loras)
    from saferedir.training.saferedir.dataset import read_pairs
    from saferedir.training.saferedir.train import train_saferedir

    if pairs is not None:
        _refuse_both({"--anchor": anchor, "--synonyms": synonyms, "--captions": captions, "--kind": kind != "object"})
        rows = read_pairs(pairs)
        pipe = load()
    else:
        if not anchor:
            raise typer.BadParameter("give --pairs, or --anchor to have pairs made.", param_hint="--pairs / --anchor")
        if count < ENOUGH:
            raise typer.BadParameter(
                f"{count} pairs are too few to train on; give {ENOUGH} or more.", param_hint="--count"
            )
        plan = read_plan(concept, anchor, kind=kind, synonyms=synonyms, count=count, seed=seed)
        texts = read_captions(captions)
        pipe = load()
        rows = _build_rows(pipe, plan, texts)
    given = {
        "steps": steps, "rollouts": rollouts, "rollout_steps": rollout_steps, "rollout_batch": rollout_batch,
        "guidance_scale": guidance, "anchor": anchor_prompt,
    }  # fmt: skip
    config = _config({name: value for name, value in given.items() if value is not None}, call, seed)
    images = config.rollouts + config.held_out_rollouts
    check_space(out, 128 * MEGABYTE + images * config.rollout_steps * _bytes_per_step(pipe, config.call))
    work = out.with_name(out.name + ".work")
    if work.exists():
        errors.print(f"An earlier run left {work}; going on from there.", soft_wrap=True, highlight=False)
    on_stop(GOES_ON)
    with progress_bar() as bar:
        guard = train_saferedir(
            pipe, rows, out, concept=concept, config=config, progress=bar, overwrite=force, keep_weak=force
        )
    if pairs is None:
        save_pairs(rows, out / PAIRS)
        console.print(f"Pairs written to {out / PAIRS}", soft_wrap=True, highlight=False)
    finish_guard(guard, out, model, lora or [], {"training": guard.config.training})


def _refuse_both(options: dict[str, Any]) -> None:
    """--pairs is a finished file: options that make one would be ignored."""
    given = [name for name, value in options.items() if value]
    if given:
        hint = "; the last resort of the escalation is --anchor-prompt" if "--anchor" in given else ""
        raise typer.BadParameter(f"{given[0]} is for making pairs, and --pairs gives them{hint}.", param_hint=given[0])


def _config(given: dict[str, Any], call: list[str] | None, seed: int) -> TrainConfig:
    """The library's own defaults, but for what was given; held out is the same share of the roll-outs as there."""
    from saferedir.training.saferedir.train_config import TrainConfig

    usual = TrainConfig()
    if "rollouts" in given:
        share = usual.held_out_rollouts / usual.rollouts
        given = {**given, "held_out_rollouts": max(2, round(share * given["rollouts"]))}
    return TrainConfig(**given, call=named_values(call or [], "--call"), seed=seed)


def _build_rows(pipe: Any, plan: PairPlan, captions: list[str]) -> list[Pair]:
    """Pairs made for this pipeline's tokenizer."""
    from saferedir.training.saferedir.pairs.build import build_pairs
    from saferedir.training.saferedir.pairs.lengths import Lengths

    built = build_pairs(plan, captions=captions, lengths=Lengths(getattr(pipe, "tokenizer", None)))
    show_samples(built, 8, plan.seed)
    show_report(built.report)
    return list(built.rows)


def _bytes_per_step(pipe: Any, call: dict[str, Any]) -> int:
    """One image's or video's latents in float16, as the roll-outs keep them for every step."""
    from saferedir.errors import UnsupportedPipelineError
    from saferedir.pipelines.latents import latent_shape

    try:
        return 2 * math.prod(latent_shape(pipe, call))
    except UnsupportedPipelineError:  # a size that nobody says
        return 2 * 16 * 128 * 128


def finish_guard(guard: Any, out: Path, model: str, loras: Sequence[str], record: dict[str, Any]) -> None:
    """Write the summary of a finished guard and show it with the last word on it.

    Args:
        guard: a SafeRedir guard.
        out: its folder.
        model: what it was made for.
        loras: what `--lora` was given.
        record: how it was made, for the summary.
    """
    values = guard.config
    summary = {
        "made_by": f"saferedir {library_version()}",
        "method": guard.method,
        "concept": values.concept,
        "model": model,
        **({"loras": list(loras)} if loras else {}),
        "thresholds": guard_thresholds(values),
        "measured": values.measured,
        **record,
    }
    write_json(out / SUMMARY, summary)
    tables(summary)
    console.print(f"Guard written to {escape(str(out))}", soft_wrap=True, highlight=False)
    print_verdict(values, out, " ".join([model, *(f"--lora {name}" for name in loras)]))


def guard_thresholds(config: Any) -> dict[str, float]:
    """The thresholds of a SafeRedir guard by verdict."""
    thresholds = {"prompt": config.prompt_threshold, "image": config.image_threshold}
    return thresholds if config.last_threshold is None else {**thresholds, "last image": config.last_threshold}


def print_verdict(config: Any, out: Path, model: str) -> None:
    """The last word on a guard: good, or weak and why, and what to do next."""
    verdict = config.calibration["verdict"]
    style = "bold green" if verdict["good"] else "bold red"
    console.print(f"[{style}]{escape(verdict['why'])}[/]", soft_wrap=True, highlight=False)
    call = "".join(
        f" --call {name}={shlex.quote(str(value))}" for name, value in config.training.get("call", {}).items()
    )
    steps = [f'saferedir generate "…{config.concept}…" --model {model} --guard {out}{call} --out runs/trial']
    if not verdict["good"]:
        steps = [
            "more pairs, phrasings and near misses (saferedir pairs build --count --synonyms), and more --rollouts",
            'until then, in Python: protect(pipe, guard, on_unsafe="verify", verify=a function of the finished images)',
        ]
    for step in steps:
        console.print(f"Next: {escape(step)}", soft_wrap=True, highlight=False)


def tables(summary: dict[str, Any]) -> None:
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
