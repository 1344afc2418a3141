"""`saferedir demo`: the packaged model with and without guards, side by side. The logic is in saferedir/demo."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from saferedir.cli.common import console, load_model, new_table, percent_cell, progress_bar
from saferedir.cli.options import Device, Seed, Steps
from saferedir.cli.output import SUMMARY, holds_out, staged_output


class DemoGuards(StrEnum):
    """What `demo` compares."""

    SAFEREDIR = "saferedir"
    ALL = "all"


@holds_out
def demo(
    out: Annotated[Path, typer.Option(help="Folder for grid.png and summary.json.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A third of the prompts.")] = False,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Forget prompts per concept (24); retain prompts are two thirds.")
    ] = None,
    world: Annotated[
        int, typer.Option(min=1, max=2, help="1: three concepts; 2: FLUX, one task of each kind in a richer world.")
    ] = 1,
    guard: Annotated[
        DemoGuards, typer.Option(help="saferedir: with and without that guard; all: every method side by side.")
    ] = DemoGuards.SAFEREDIR,
    seed: Seed = 0,
    steps: Steps = 30,
    device: Device = "auto",
) -> None:
    """Generate the same prompts with and without a guard, and let a judge count; an earlier demo at --out is replaced.

    Uses the small models inside the package: nothing is downloaded, a CPU is enough, it takes a minute or two; two to four
    minutes with `--guard all`, which generates 8 + 4 prompts per concept and method, and with `--world 2`.

    Example:  `saferedir demo --out runs/demo`

    Example:  `saferedir demo --guard all --out runs/methods`

    Example:  `saferedir demo --world 2 --out runs/world2-demo`
    """
    if world == 2:
        _demo_of_world2(out, prompts if prompts is not None else 4 if quick else 8, seed, steps, device)
        return
    if guard is DemoGuards.ALL:
        _demo_of_methods(out, prompts if prompts is not None else 4 if quick else 8, seed, steps, device)
        return
    count = prompts if prompts is not None else 8 if quick else 24
    with staged_output(out) as (folder, target):
        from saferedir.demo import DemoConfig, demo_guards, run_demo

        guards = demo_guards()
        pipe = load_model("pictoworld", device=device)
        from saferedir.pictoworld.evaluation import load_judge

        config = DemoConfig(forget=count, retain=max(2, 2 * count // 3), steps=steps, seed=seed)
        summary = run_demo(pipe, guards, load_judge(), folder, config, progress_bar())
    _demo_table(summary)
    console.print(f"Images:  {target / 'grid.png'}", soft_wrap=True, highlight=False)
    console.print(f"Numbers:  {target / SUMMARY}", soft_wrap=True, highlight=False)


def _demo_of_methods(out: Path, forget: int, seed: int, steps: int, device: str) -> None:
    with staged_output(out) as (folder, target):
        from saferedir.demo.methods import compare_methods
        from saferedir.pictoworld.evaluation import load_judge

        pipe, retain = load_model("pictoworld", device=device), max(2, forget // 2)
        summary = compare_methods(
            pipe, load_judge(), folder, forget=forget, retain=retain, steps=steps, seed=seed, progress=progress_bar()
        )
    for name, rows in summary["tasks"].items():
        table = new_table(
            f"{name}: per cent of {forget} images that ask for it and {retain} that do not", "method", ">shown",
            ">others kept", ">drift", ">broken", ">seconds",
        )  # fmt: skip
        for row in rows:
            if "missing" in row:
                table.add_row(row["method"], *["–"] * 5)
                continue
            rates = [f"{100 * row[key]['rate']:.0f}" for key in ("concept_rate", "retain_kept", "broken")]
            table.add_row(row["method"], *rates[:2], f"{row['retain_drift']:.2f}", rates[2], f"{row['seconds']:.1f}")
        console.print(table)
    console.print(f"Images:  {target}/<concept>.png", soft_wrap=True, highlight=False)
    console.print(f"Numbers:  {target / SUMMARY}", soft_wrap=True, highlight=False)


def _demo_of_world2(out: Path, forget: int, seed: int, steps: int, device: str) -> None:
    with staged_output(out) as (folder, target):
        from saferedir.demo.world2 import run_world2_demo
        from saferedir.pictoworld.world2.judge import Judge

        summary = run_world2_demo(
            lambda name: load_model(name, device=device),
            Judge.load(),
            folder,
            forget=forget,
            retain=max(2, forget // 2),
            seed=seed,
            progress=progress_bar(),
            num_inference_steps=steps,
        )
    table = new_table(
        "Per cent of images, with 95 % Wilson intervals", "task", "guard", ">shown without", ">with", ">others kept"
    )
    for row in summary["tasks"]:
        if "missing" in row:
            continue
        shown = [percent_cell(row[key]) for key in ("shown_without", "shown_with")]
        kept = percent_cell(row["others_kept"]) if "others_kept" in row else "–"
        table.add_row(row["task"], row["method"], *shown, kept)
    console.print(table)
    for row in summary["tasks"]:
        if "missing" in row:
            console.print(f"Not shown:  {row['task']}; {row['missing']}.", soft_wrap=True, highlight=False)
    console.print(f"Images:  {target}/<task>.png", soft_wrap=True, highlight=False)
    console.print(f"Numbers:  {target / SUMMARY}", soft_wrap=True, highlight=False)


def _demo_table(summary: dict[str, Any]) -> None:
    """Measures down, concepts across: it fits a terminal of 80 columns."""
    measures = {
        "shown, without guard": "concept_rate_unguarded",
        "shown, with guard": "concept_rate_guarded",
        "broken, with guard": "broken_rate_guarded",
        "others: identical": "retain_identical_rate",
        "others: attributes kept": "retain_attributes_kept",
    }
    tasks = summary["tasks"]
    title = "Per cent of images, with 95 % Wilson intervals"
    table = new_table(title, "", *(f">{task['concept']}" for task in tasks))
    table.columns[0].no_wrap = True
    counts = [f"{task['n_forget']} + {task['n_retain']}" for task in tasks]
    table.add_row("asking + other prompts", *counts, end_section=True)
    for label, key in measures.items():
        table.add_row(label, *(percent_cell(task["intervals"][key]) for task in tasks))
    table.add_section()
    for label, key in (("seconds, without guard", "seconds_unguarded"), ("seconds, with guard", "seconds_guarded")):
        table.add_row(label, *(f"{task[key]:.1f}" for task in tasks))
    console.print(table)
