"""`saferedir train uce` and `saferedir train esd`: guards of edited weights from prompts, without an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saferedir.cli.common import console, errors, load_model, new_table, progress_bar
from saferedir.cli.options import MAX_SEED, CallArguments, ModelVariant, Revision
from saferedir.cli.output import MEGABYTE, SUMMARY, check_guard_folder, check_space, holds_out, write_json
from saferedir.cli.pairs import Anchors, Captions, Kind, Synonyms, read_captions, read_plan
from saferedir.cli.recipes import WORLD, recipe_settings, world_rows
from saferedir.cli.stopping import GOES_ON, on_stop
from saferedir.utils.packaged import library_version

if TYPE_CHECKING:
    from saferedir.guards.weights import WeightGuard
    from saferedir.training.saferedir.dataset import Pair


Out = Annotated[Path, typer.Option(help="Folder for the finished guard.")]
Concept = Annotated[str, typer.Option(metavar="NAME", help="What must not appear, in a word or two.")]
Model = Annotated[str, typer.Option(metavar="ID", help="pictoworld, a diffusers folder, or a hub id.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the guard at --out.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: float32.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of everything.")]
Pairs = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help='JSON lines: {"unsafe": …, "safe": …}, or {"safe": …} for one to preserve.'),
]
Count = Annotated[int, typer.Option(min=1, help="Pairs to make, if none are given.")]


@holds_out
def uce(
    out: Out,
    concept: Concept,
    pairs: Pairs = None,
    anchor: Anchors = None,
    kind: Kind = "object",
    synonyms: Synonyms = None,
    captions: Captions = None,
    count: Count = 400,
    model: Model = WORLD,
    erase_scale: Annotated[float | None, typer.Option(help="Vote of a prompt with the concept; default: 1.")] = None,
    preserve_scale: Annotated[float | None, typer.Option(help="Vote of a prompt to preserve; default: 1.")] = None,
    ridge: Annotated[
        float | None, typer.Option(help="What holds the weights where no prompt says anything; default: 0.5.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="all (default), or last: the last token of the concept alone, as released.")
    ] = None,
    call: CallArguments = None,
    seed: Seed = 42,
    force: Force = False,
    dtype: Dtype = None,
    model_variant: ModelVariant = None,
    revision: Revision = None,
    device: Device = "auto",
) -> None:
    """Make a UCE guard (arXiv:2308.14761): text projections that project the concept as what replaces it.

    A closed form: seconds, without an image. The prompts come from --pairs, or are made from --concept and --anchor. The
    result loads with diffusers' plain `load_lora_weights`, too, and `saferedir bake` merges it into the model.

    Example:  `saferedir train uce --model pictoworld --concept star --out runs/star-uce`

    Example:  `saferedir train uce --model owner/name --concept dog --anchor cat --out runs/dog`
    """
    rows = _prepare(out, concept, pairs, anchor, kind, synonyms, captions, count, model, seed, force)
    from saferedir.training.uce.train import TrainConfig, check_editable, train_uce

    given: dict[str, Any] = {
        "erase_scale": erase_scale,
        "preserve_scale": preserve_scale,
        "ridge": ridge,
        "tokens": tokens,
    }
    config = TrainConfig(**recipe_settings("uce", model, concept, given, call))
    pipe = load_model(model, dtype=dtype, device=device, variant=model_variant, revision=revision)
    check_editable(pipe)
    with progress_bar() as bar:
        guard = train_uce(pipe, rows, out, concept=concept, config=config, progress=bar, overwrite=force)
    _finish(guard, out, model, ("pairs", "preserved", "layers"))


@holds_out
def esd(
    out: Out,
    concept: Concept,
    pairs: Pairs = None,
    anchor: Anchors = None,
    kind: Kind = "object",
    synonyms: Synonyms = None,
    count: Count = 400,
    model: Model = WORLD,
    variant: Annotated[
        str | None, typer.Option(help="x: layers that listen to the text; u: all others; full: both; default: x.")
    ] = None,
    eta: Annotated[
        float | None, typer.Option(help="How far beyond the reference it is turned; default: 1, pictoworld 0.3.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="empty: the empty prompt (the paper); safe: each prompt's counterpart (pictoworld)."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; default: 1000, pictoworld 80.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images a step; default: 1, pictoworld 4.")] = None,
    sampling_steps: Annotated[
        int | None, typer.Option(min=2, help="Sampling steps of the images; default: 50, pictoworld 10.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Their guidance; default: 3.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the LoRA; default: 16.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of AdamW; default: 1e-4, pictoworld 5e-4.")] = None,
    call: CallArguments = None,
    seed: Seed = 42,
    force: Force = False,
    dtype: Dtype = None,
    model_variant: ModelVariant = None,
    revision: Revision = None,
    device: Device = "auto",
) -> None:
    """Train an ESD guard (arXiv:2303.07345): a LoRA whose prediction for the concept is turned round.

    Prompts for the concept come from --pairs, or are made from --concept and --anchor; with neither it is the concept's name
    alone, as the paper has it. A run that was killed goes on where it stopped when the same command is given again. The result
    loads with diffusers' plain `load_lora_weights`, too, and `saferedir bake` merges it into the model.

    Example:  `saferedir train esd --model pictoworld --concept star --out runs/star-esd`

    Example:  `saferedir train esd --model owner/name --concept "Van Gogh" --out runs/van-gogh`
    """
    rows = _prepare(out, concept, pairs, anchor, kind, synonyms, None, count, model, seed, force, needs_pairs=False)
    from saferedir.training.esd.train import check_trainable, train_esd
    from saferedir.training.esd.train_config import TrainConfig

    given: dict[str, Any] = {
        "variant": variant, "eta": eta, "reference": reference, "steps": steps, "batch": batch, "rank": rank,
        "sampling_steps": sampling_steps, "guidance_scale": guidance_scale, "learning_rate": learning_rate,
    }  # fmt: skip
    config = TrainConfig(**recipe_settings("esd", model, concept, given, call), seed=seed)
    if config.reference == "safe" and not all(row.safe for row in rows if row.unsafe is not None):
        raise typer.BadParameter(
            "these prompts have no counterparts; give --anchor or --pairs.", param_hint="--reference"
        )
    pipe = load_model(model, dtype=dtype, device=device, variant=model_variant, revision=revision)
    check_trainable(pipe)
    work = out.with_name(out.name + ".work")
    if work.exists():
        errors.print(f"An earlier run left {work}; going on from there.", soft_wrap=True, highlight=False)
    on_stop(GOES_ON)
    with progress_bar() as bar:
        guard = train_esd(pipe, rows, out, concept=concept, config=config, progress=bar, overwrite=force)
    _finish(guard, out, model, ("steps_done", "last_loss", "last_relative"))


def _prepare(
    out: Path, concept: str, pairs: Path | None, anchor: list[str] | None, kind: str, synonyms: Path | None,
    captions: Path | None, count: int, model: str, seed: int, force: bool, *, needs_pairs: bool = True,
) -> list[Pair]:  # fmt: skip
    """The prompts of a command, after every check that needs no model."""
    if not concept.strip():
        raise typer.BadParameter("the concept needs a name.", param_hint="--concept")
    if pairs is not None:
        for name, value in (("--anchor", anchor), ("--synonyms", synonyms), ("--captions", captions)):
            if value:
                raise typer.BadParameter(f"{name} is for making pairs, and --pairs gives them.", param_hint=name)
    check_guard_folder(out, force)
    check_space(out, 256 * MEGABYTE)
    from saferedir.training.saferedir.dataset import Pair, read_pairs

    if pairs is not None:
        return read_pairs(pairs.expanduser())
    if anchor:
        from saferedir.training.saferedir.pairs.build import build_pairs

        plan = read_plan(concept, anchor, kind=kind, synonyms=synonyms, count=count, seed=seed)
        return list(build_pairs(plan, captions=read_captions(captions)).rows)
    if rows := world_rows(model, concept, count, seed):
        return rows
    if needs_pairs:
        raise typer.BadParameter("give --anchor or --pairs.", param_hint="--anchor / --pairs")
    return [Pair(concept, "")]


def _finish(guard: WeightGuard[Any], out: Path, model: str, facts: tuple[str, ...]) -> None:
    """Write the summary of a finished guard, and print it."""
    training = guard.config.training
    write_json(
        out / SUMMARY,
        {
            "made_by": f"saferedir {library_version()}",
            "method": guard.method,
            "concept": guard.config.concept,
            "model": model,
            "training": training,
        },
    )
    table = new_table("Guard", "what", ">value")
    for name in facts:
        table.add_row(name.replace("_", " "), f"{training[name]:.4g}")
    table.add_row("rank", str(guard.config.rank))
    console.print(table)
    console.print(f"Guard written to {out}", soft_wrap=True, highlight=False)
