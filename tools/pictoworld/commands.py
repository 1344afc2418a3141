"""`python -m tools.pictoworld`: train the embedded world again, write the packaged guards that carry images, measure its quality.

Options, errors and outputs are those of the command line `saferedir`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from saferedir.cli.common import (
    Commands,
    choose_device,
    console,
    escape,
    load_model,
    named_values,
    new_table,
    progress_bar,
    quiet,
)
from saferedir.cli.options import MAX_SEED, Device
from saferedir.cli.output import (
    MEGABYTE,
    OutputError,
    check_space,
    check_weights_place,
    holds_out,
    staged_output,
    write_json,
)
from saferedir.cli.stopping import GOES_ON, on_stop
from saferedir.utils.names import unknown_name_message
from saferedir.utils.packaged import LORA_FILE, packaged_model_path

app = typer.Typer(
    name="python -m tools.pictoworld",
    cls=Commands,
    help="Make the embedded text-to-image world: for maintainers, from a clone.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(no_args_is_help=True)
@holds_out
def train(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the finished model.")],
    share: Annotated[
        float, typer.Option(min=0.0005, help="Share of the full number of steps; 0.01 for a trial.")
    ] = 1.0,
    device: Device = "auto",
) -> None:
    """Train the embedded model and its judge from scratch: about two hours on two CPU cores.

    A run that was killed goes on where it stopped when the same command is given again.

    Example:  `python -m tools.pictoworld train --out runs/pictoworld`
    """
    check_weights_place(out)
    if out.is_file():
        raise OutputError(f"{out} is a file; choose another --out.")
    resumes = (out / "checkpoints" / "plan.json").is_file()
    if out.is_dir() and any(out.iterdir()) and not resumes:
        raise OutputError(f"{out} is not empty and holds no PictoWorld training; choose another --out.")
    check_space(out, 1024 * MEGABYTE)
    device_name = choose_device(device)
    quiet()
    from tools.pictoworld.training.run import WorldConfig, train_world

    if resumes:
        console.print(
            f"An earlier run left checkpoints in {out}; going on from there.", soft_wrap=True, highlight=False
        )
    on_stop(GOES_ON)
    folder = train_world(out, WorldConfig().scaled(share), device=device_name, progress=progress_bar())
    console.print(f"Model: {folder}", soft_wrap=True, highlight=False)
    console.print(f"Judge: {out / 'judge.safetensors'}", soft_wrap=True, highlight=False)
    console.print(f"Measure them: python -m tools.pictoworld report --world {out}", soft_wrap=True, highlight=False)


@app.command(no_args_is_help=True)
@holds_out
def world2(
    stage: Annotated[str, typer.Argument(help="vae, text, flux, dit or judge, in this order; or ddpm.")],
    out: Annotated[Path, typer.Option(help="Folder for the stages' checkpoints, logs and results.")],
    share: Annotated[
        float, typer.Option(min=0.0005, help="Share of the full number of steps; 0.01 for a trial.")
    ] = 1.0,
    device: Device = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the transformers of flux and dit; needs a C++ compiler.")
    ] = False,
) -> None:
    """Train one stage of PictoWorld 2; a run that was killed goes on where it stopped when the command is given again.

    Example:  `python -m tools.pictoworld world2 vae --out runs/world2`
    """
    check_weights_place(out)
    check_space(out, 1024 * MEGABYTE)
    quiet()
    from tools.pictoworld.world2.run import STAGES, StageRun

    if stage not in STAGES:
        raise OutputError(unknown_name_message("stage of PictoWorld 2", stage, STAGES))
    on_stop(GOES_ON)
    steps, pool = max(2, round(STAGES[stage].steps * share)), max(64, round(StageRun.pool * min(1.0, share)))
    result = STAGES[stage].run(
        StageRun(out, steps, choose_device(device), progress_bar(), pool=pool, compiled=compiled)
    )
    console.print(f"Result: {result}", soft_wrap=True, highlight=False)


@app.command(no_args_is_help=True)
def unpack2(
    out: Annotated[Path, typer.Option(help="Folder of `world2`, in which its stages go on.")],
) -> None:
    """Lay the packaged models of PictoWorld 2 out, so that other stages, or more of their own steps, can follow.

    Example:  `python -m tools.pictoworld unpack2 --out runs/world2`
    """
    check_weights_place(out)
    if (out / "flux").exists() or (out / "vae").exists():
        raise OutputError(f"{out} holds stages already; choose another --out.")
    quiet()
    from tools.pictoworld.world2.run import unpack

    packaged = packaged_model_path("pictoworld-flux")
    if packaged is None:
        raise OutputError("pictoworld-flux is not packaged; train it with `world2`, vae, text and flux in turn.")
    console.print(
        f"Laid out below {out}: {unpack(packaged, out, *map(packaged_model_path, ('pictoworld-dit', 'pictoworld-ddpm')))}",
        soft_wrap=True,
        highlight=False,
    )


@app.command(no_args_is_help=True)
@holds_out
def edits2(
    out: Annotated[Path, typer.Option(help="Folder for the guards, <task>-<method> each, and their image pairs.")],
    task: Annotated[list[str] | None, typer.Option(help="Of PictoWorld 2, such as star-2; default: star-2.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="uce, esd or duo; default: all three.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A training setting to try, such as steps=200."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train guards of edited weights for pictoworld-flux by their recipes, in float16 as the package has them.

    A finished guard is kept, a killed training goes on. `benchmarks/world2.py --guards OUT --validation` measures them.

    Example:  `python -m tools.pictoworld edits2 --out runs/edits --task star-2 --method duo --set steps=200`
    """
    from saferedir.pictoworld.world2.methods import EDITS
    from saferedir.pictoworld.world2.tasks import task_named
    from tools.pictoworld.world2.edits import make_edit

    tasks, methods = [task_named(name) for name in task or ["star-2"]], method or list(EDITS)
    for name in methods:
        if name not in EDITS:
            raise typer.BadParameter(unknown_name_message("method", name, EDITS), param_hint="--method")
    settings = named_values(changes or [], "--set")
    pipe = load_model("pictoworld-flux", device=device)
    on_stop(GOES_ON)
    with progress_bar() as bar:
        for one in tasks:
            for name in methods:
                folder = make_edit(pipe, one, name, out, settings, bar)
                console.print(f"Guard: {folder}", soft_wrap=True, highlight=False)


@app.command("few-steps", no_args_is_help=True)
@holds_out
def few_steps(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, the log and the LoRA.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 600,
    pool: Annotated[int, typer.Option(min=64, help="Rendered images to train on.")] = 6_000,
    device: Device = "auto",
) -> None:
    """Distil the packaged model into a LoRA for one to eight steps without guidance; goes on where it was stopped.

    Example:  `python -m tools.pictoworld few-steps --out runs/few-steps`
    """
    check_weights_place(out)
    check_space(out, 256 * MEGABYTE)
    quiet()
    import json

    from saferedir.utils.files import save_tensors
    from tools.pictoworld.training.few_steps import train_few_steps

    out.mkdir(parents=True, exist_ok=True)
    on_stop(GOES_ON)

    def log(entry: dict[str, Any]) -> None:
        with (out / "log.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")

    pipe = load_model("pictoworld", device=device)
    tensors = train_few_steps(pipe, out, steps=steps, pool=pool, progress=progress_bar(), log=log)
    save_tensors(tensors, out / LORA_FILE)
    console.print(f"LoRA: {out / LORA_FILE}", soft_wrap=True, highlight=False)


@app.command(no_args_is_help=True)
def report2(
    model: Annotated[str, typer.Argument(help="flux or dit.")],
    out: Annotated[
        Path, typer.Option(help="Folder of `world2`; a training that still runs is measured at its checkpoint.")
    ],
    images: Annotated[int, typer.Option(min=1, help="Images to generate.")] = 1000,
) -> None:
    """Measure a model of PictoWorld 2 against its bars; every measurement is kept as a point of the learning curve.

    Example:  `python -m tools.pictoworld report2 flux --out runs/world2 --images 100`
    """
    quiet()
    from tools.pictoworld.world2.report import report_dit, report_flux

    reports = {"flux": report_flux, "dit": report_dit}
    if model not in reports:
        raise OutputError(unknown_name_message("model of PictoWorld 2", model, reports))
    _report_table(reports[model](out, images, progress=progress_bar()))


@app.command(no_args_is_help=True)
@holds_out
def guards(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the guards, one folder each.")],
    world: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A world from `train`; default: the packaged one.")
    ] = None,
    device: Device = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Replace the guards that this command wrote to --out.")
    ] = False,
) -> None:
    """Write the guards that need images but no training, safe_denoiser and spell, for each of the three tasks.

    These are the ones inside the package. A world trained anew has another VAE and needs guards of its own.

    Example:  `python -m tools.pictoworld guards --out runs/guards`
    """
    check_weights_place(out)
    if out.is_dir() and any(out.iterdir()) and not force:
        raise OutputError(
            f"{out} is not empty; choose another --out, or give --force to replace guards of this command."
        )
    with staged_output(out, marker="guards.json") as (folder, folder_out):
        pipe = load_model("pictoworld" if world is None else str(world / "pipeline"), device=device)
        from saferedir.pictoworld.methods import METHODS, WITH_DATA
        from saferedir.pictoworld.tasks import TASKS

        rows: list[dict[str, Any]] = []
        with progress_bar().task("encoding", len(TASKS) * len(WITH_DATA)) as advance:
            for name, task in TASKS.items():
                for method in WITH_DATA:
                    advance(0, f"{name}: {method}")
                    guard = METHODS[method](task, pipe)
                    written = guard.save_pretrained(folder / f"{name}-{method}")
                    size = sum(path.stat().st_size for path in written.iterdir())
                    rows.append({"guard": written.name, "concept": name, "method": guard.method, "bytes": size})
                    advance()
        write_json(folder / "guards.json", {"guards": rows})
    table = new_table("Guards", "guard", "concept", "method", ">size")
    for row in rows:
        table.add_row(row["guard"], row["concept"], row["method"], f"{row['bytes'] / 1024:.0f} kB")
    console.print(table)
    console.print(f"Written to {folder_out}", soft_wrap=True, highlight=False)


@app.command()
@holds_out
def report(
    out: Annotated[Path, typer.Option(help="Folder for report.json, pictoworld.md and pictoworld.png.")] = Path(
        "runs/pictoworld-report"
    ),
    images: Annotated[int, typer.Option(min=1, help="Held-out captions to generate.")] = 2000,
    concept_images: Annotated[int, typer.Option(min=1, help="Prompts per concept and phrasing.")] = 100,
    judge_images: Annotated[int, typer.Option(min=1, help="Renders to measure the judge on.")] = 4000,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 30,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of captions and noise.")] = 777_000_001,
    world: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A world from `train`; default: the packaged one.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure the embedded model and its judge against their quality bar, and say plainly what misses it.

    Example:  `python -m tools.pictoworld report --images 200 --concept-images 20 --out runs/report`
    """
    with staged_output(out, marker="report.json") as (folder, folder_out):
        pipe = load_model("pictoworld" if world is None else str(world / "pipeline"), device=device)
        from saferedir.pictoworld.judge import WEIGHTS, Judge
        from tools.pictoworld.report import ReportConfig, quality_report

        judge = Judge.load(WEIGHTS if world is None else world / "judge.safetensors")
        config = ReportConfig(
            images=images, concept_images=concept_images, judge_images=judge_images, steps=steps, seed=seed
        )
        record = quality_report(pipe, judge, images, folder, config=config, progress=progress_bar())
    _report_table(record)
    console.print(f"Page: {folder_out / 'pictoworld.md'}", soft_wrap=True, highlight=False)


def _report_table(record: dict[str, Any]) -> None:
    table = new_table("Quality, with 95 % Wilson intervals", "what", ">bar", "measured", ">n", "")
    for row in record["bars"]:
        bar = f"{'≥' if row['at_least'] else '≤'} {row['bar']:g}"
        verdict = "met" if row["met"] else "[bold red]missed[/]"
        table.add_row(escape(row["what"]), bar, _rate_cell(row["measured"]), str(row["measured"]["n"]), verdict)
    console.print(table)


def _rate_cell(rate: dict[str, Any]) -> str:
    """A rate with its interval, as a table cell."""
    if not rate["n"]:
        return "no case"
    return f"{rate['rate']:.2f} ({rate['low']:.2f} to {rate['high']:.2f})"
