"""`saferedir train duo`: picture pairs, then a LoRA that has unlearned the concept. The method itself is in guards/duo/."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saferedir.cli.common import console, errors, escape, load_model, new_table, progress_bar
from saferedir.cli.options import MAX_SEED, ModelVariant, Revision
from saferedir.cli.output import MEGABYTE, SUMMARY, check_guard_folder, check_space, holds_out, write_json
from saferedir.cli.pairs import Anchors, Kind, read_plan
from saferedir.cli.stopping import GOES_ON, on_stop
from saferedir.utils.packaged import library_version

if TYPE_CHECKING:
    from saferedir.pictoworld.tasks import Task
    from saferedir.training.duo.pair_files import ImagePair
    from saferedir.training.duo.pairs import ConceptJudge, PairConfig
    from saferedir.training.duo.train_config import TrainConfig

WORLD = "pictoworld"


@holds_out
def duo(
    out: Annotated[Path, typer.Option(help="Folder for the finished guard.")],
    concept: Annotated[str, typer.Option(metavar="NAME", help="What must not appear, in a word or two.")],
    pairs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Ready pairs: unsafe/ and safe/ with equally many pictures.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help='Prompts to draw from, JSON lines: {"unsafe": …, "safe": …}.')
    ] = None,
    anchor: Anchors = None,
    kind: Kind = "object",
    model: Annotated[
        str, typer.Option(metavar="ID", help="pictoworld, a diffusers folder, or a hub id.")
    ] = "pictoworld",
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="Your function of PIL pictures: one bool each, whether the concept shows."
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=2, help="Pairs to draw.")] = 64,
    strength: Annotated[float, typer.Option(min=0.01, max=1, help="SDEdit: share of the steps drawn again.")] = 0.75,
    sampling_steps: Annotated[
        int | None, typer.Option(min=2, help="Sampling steps of the drawn pictures; default: 50, pictoworld 30.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Their guidance; default: 7.5, pictoworld 4.")] = None,
    variant: Annotated[
        str, typer.Option(help="as-paper (with our fixes), or as-coded like the released code.")
    ] = "as-paper",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps; default: 1000, pictoworld 70 to 250.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pairs a step; default: 4.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the LoRA; default: 32, pictoworld 16.")] = None,
    beta: Annotated[
        float | None, typer.Option(help="Preference temperature; smaller unlearns more; default: 500, pictoworld 50.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of AdamW; default: 6e-5, SD3 6e-6, pictoworld 5e-4.")
    ] = None,
    prior_weight: Annotated[
        float | None, typer.Option(help="Weight of staying put at pure noise; default: 5e6, pictoworld 1e4.")
    ] = None,
    conditioning: Annotated[
        str | None,
        typer.Option(help="null (the empty prompt, as the paper has it) or prompt (that of each pair; pictoworld)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of everything.")] = 42,
    force: Annotated[bool, typer.Option("--force", help="Replace the guard at --out.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: float32.")] = None,
    model_variant: ModelVariant = None,
    revision: Revision = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
) -> None:
    """Train a DUO guard (arXiv:2407.21035): a LoRA that prefers pictures without the concept.

    Pairs come from --pairs, or are drawn by the model (kept beside the guard as `OUT.pairs/`): a picture with the concept, and
    the same picture edited to be without. The result loads with diffusers' plain `load_lora_weights`, too. A run that was
    killed goes on where it stopped when the same command is given again.

    Example:  `saferedir train duo --model pictoworld --concept star --out runs/star-duo`

    Example:  `saferedir train duo --model owner/name --concept dog --anchor cat --out runs/dog`

    Example:  `saferedir train duo --model owner/name --concept dog --pairs pairs/ --out runs/dog`
    """
    if not concept.strip():
        raise typer.BadParameter("the concept needs a name.", param_hint="--concept")
    _check_sources(model, concept, pairs, prompts, anchor, judge)
    check_guard_folder(out, force)
    check_space(out, 256 * MEGABYTE)
    from saferedir.judges.callable import load_function
    from saferedir.training.duo.pair_files import read_image_pairs
    from saferedir.training.duo.train import check_trainable, train_duo

    ready = None if pairs is None else read_image_pairs(pairs.expanduser())
    texts = [] if pairs is not None else _prompt_pairs(model, concept, prompts, anchor, kind, count, seed)
    shows = None if judge is None else load_function(judge)
    pipe = load_model(model, dtype=dtype, device=device, variant=model_variant, revision=revision)
    check_trainable(pipe)
    given = {
        "steps": steps, "batch": batch, "rank": rank, "beta": beta, "learning_rate": learning_rate,
        "prior_weight": prior_weight, "conditioning": conditioning,
    }  # fmt: skip
    config = _train_config(
        pipe, model, concept, variant, ready, {name: v for name, v in given.items() if v is not None}, seed
    )
    work = out.with_name(out.name + ".work")
    if work.exists():
        errors.print(f"An earlier run left {work}; going on from there.", soft_wrap=True, highlight=False)
    on_stop(GOES_ON)
    with progress_bar() as bar:
        if ready is None:
            asked = {"steps": sampling_steps, "guidance_scale": guidance_scale}
            settings = {name: value for name, value in asked.items() if value is not None}
            plan = _pair_config(model, count=count, strength=strength, seed=seed, **settings)
            ready = _draw_pairs(pipe, model, texts, out, concept, shows, plan, bar)
        guard = train_duo(pipe, ready, out, concept=concept, config=config, progress=bar, overwrite=force)
    facts = guard.config.training
    summary = {
        "made_by": f"saferedir {library_version()}",
        "method": guard.method,
        "concept": concept,
        "model": model,
        "training": facts,
    }
    write_json(out / SUMMARY, summary)
    table = new_table("Last ten steps", "what", ">value")
    for name in ("margin", "accuracy", "safe", "unsafe", "prior"):
        table.add_row(name, f"{facts[f'last_{name}']:.4g}")
    console.print(table)
    if facts["last_accuracy"] <= 0.5:
        errors.print(
            "The safe member is not preferred yet; give more steps or a higher learning rate.", highlight=False
        )
    console.print(f"Guard written to {out}", soft_wrap=True, highlight=False)


def _check_sources(
    model: str, concept: str, pairs: Path | None, prompts: Path | None, anchor: list[str] | None, judge: str | None
) -> None:
    if pairs is not None:
        for name, value in (("--prompts", prompts), ("--anchor", anchor), ("--judge", judge)):
            if value:
                raise typer.BadParameter(f"{name} is for drawing pairs, and --pairs gives them.", param_hint=name)
    elif prompts is not None and anchor:
        raise typer.BadParameter("--anchor is for making prompts, and --prompts gives them.", param_hint="--anchor")
    elif prompts is None and not anchor and _world_task(model, concept) is None:
        raise typer.BadParameter("give --anchor, --prompts or --pairs.", param_hint="--anchor / --prompts / --pairs")


def _prompt_pairs(
    model: str, concept: str, prompts: Path | None, anchor: list[str] | None, kind: str, count: int, seed: int
) -> list[tuple[str, str]]:
    """(with the concept, without) from the file, from PictoWorld's task, or made from concept and anchor."""
    if prompts is not None:
        from saferedir.training.saferedir.dataset import read_pairs

        rows = read_pairs(prompts.expanduser())
        return [(row.unsafe, row.safe) for row in rows if row.unsafe is not None]
    task = _world_task(model, concept)
    if task is not None and not anchor:
        from saferedir.pictoworld.duo_recipe import prompt_pairs

        return prompt_pairs(task, count, seed)
    from saferedir.training.saferedir.pairs.build import build_pairs

    plan = read_plan(concept, anchor, kind=kind, synonyms=None, count=count, seed=seed)
    return [(row.unsafe, row.safe) for row in build_pairs(plan, captions=[]).rows if row.unsafe is not None]


def _world_task(model: str, concept: str) -> Task | None:
    """PictoWorld's task of that name, if it is PictoWorld's model."""
    if model != WORLD:
        return None
    from saferedir.pictoworld.tasks import TASKS

    return TASKS.get(concept)


def _pair_config(model: str, **settings: Any) -> PairConfig:
    from saferedir.training.duo.pairs import PairConfig

    if model == WORLD:
        from saferedir.pictoworld.duo_recipe import pair_config

        return pair_config(**settings)
    return PairConfig(**settings)


def _train_config(
    pipe: Any,
    model: str,
    concept: str,
    variant: str,
    ready: list[ImagePair] | None,
    given: dict[str, Any],
    seed: int,
) -> TrainConfig:
    from saferedir.pipelines.schedules import prediction_type
    from saferedir.training.duo.train_config import TrainConfig

    if model == WORLD:
        from saferedir.pictoworld.duo_recipe import train_settings

        with_prompts = ready is None or all(pair.prompt is not None for pair in ready)
        given = train_settings(concept, with_prompts=with_prompts, **given)
    is_flow = prediction_type(pipe.scheduler) == "flow"
    return TrainConfig.of_variant(variant, is_flow=is_flow, **given, seed=seed)


def _draw_pairs(
    pipe: Any, model: str, texts: list[tuple[str, str]], out: Path, concept: str, judge: ConceptJudge | None,
    config: PairConfig, bar: Any,
) -> list[ImagePair]:  # fmt: skip
    from saferedir.training.duo.pairs import make_pairs

    keeps, task = None, _world_task(model, concept)
    if judge is None and task is not None:
        from saferedir.pictoworld.duo_recipe import pair_filters

        judge, keeps = pair_filters(task)
    elif judge is None:
        errors.print("No judge: every pair is taken as drawn. Look at them, or give --judge.", highlight=False)
    folder = out.with_name(out.name + ".pairs")
    ready = make_pairs(pipe, texts, folder, concept=concept, judge=judge, keeps=keeps, config=config, progress=bar)
    console.print(f"{len(ready)} of {config.count} pairs in {escape(str(folder))}", soft_wrap=True, highlight=False)
    return ready
