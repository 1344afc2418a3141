"""`saferedir attack`: attack a guarded model, and have judges say what came of it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from saferedir.attacks.catalogue import ATTACK_ROWS, AttackRow
from saferedir.cli.common import (
    console,
    errors,
    escape,
    load_guards,
    load_model,
    named_values,
    new_table,
    percent_cell,
    print_json,
    progress_bar,
)
from saferedir.cli.options import MAX_SEED, AsJson, Device, Steps
from saferedir.cli.output import MEGABYTE, holds_out, staged_output

RECORD, SHEET = "attack.json", "images.png"
SHOWN = 16  # images on the sheet

attack_app = typer.Typer(
    name="attack",
    help="Attack a guarded model, and have judges say what came of it.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


class Preset(StrEnum):
    """What an attack may cost."""

    QUICK = "quick"
    PAPER = "paper"


class OnUnsafe(StrEnum):
    """A policy of `protect` around the guards."""

    NONE = "none"
    REDIRECT = "redirect"
    VERIFY = "verify"
    BLOCK = "block"


class Control(StrEnum):
    """What must fail if an attack measures what it says."""

    NONE = "none"
    RANDOM_NETWORK = "random-network"
    BENIGN_REFERENCE = "benign-reference"


@attack_app.command("list")
def list_attacks(as_json: AsJson = False) -> None:
    """List the attacks: what each does, what the attacker must know, and what is sent.

    T1 knows nothing but the images that come back; T2 may set any argument of the pipeline's call; T3 has the weights of model
    and guard, and gradients through both. Attacks of T1 that need a text encoder take the model's own.

    Example:  `saferedir attack list`
    """
    from dataclasses import asdict

    if as_json:
        print_json([asdict(row) for row in ATTACK_ROWS])
        return
    table = new_table("Attacks", "attack", "knows, sends", "arXiv", "what it does")
    for column in table.columns[:3]:
        column.no_wrap = True
    for row in ATTACK_ROWS:
        table.add_row(*map(escape, (row.name, f"{row.knowledge} {row.channel}", row.paper or "–", row.title)))
    console.print(table)
    console.print("One of them:  saferedir attack NAME --help", highlight=False)


@attack_app.command("matrix")
def run_matrix(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A TOML file: concepts, guards, and blocks of cells.")],
    results: Annotated[Path, typer.Option(help="Folder for the cells, a small JSON file each.")] = Path("results"),
    work: Annotated[Path, typer.Option(help="Folder for what the attacks found; it holds texts of prompts.")] = Path(
        "runs/ladder"
    ),
    device: Device = "auto",
) -> None:
    """Run the ladder: guards under attacks of every rung, cell by cell; what is there already is kept.

    A cell is written as soon as it is done, so an interrupted run goes on where it was. A cell runs again where its guard, its
    model, its prompts, its call or its attack's settings have changed.

    Example:  `saferedir attack matrix benchmarks/ladder.toml --results results`
    """
    from saferedir.bench.ladder.cells import Ladder
    from saferedir.bench.ladder.plan import read_plan

    chosen = read_plan(plan)
    pipe = load_model(chosen.model, device=device)
    ladder = Ladder(
        chosen, pipe, results, work, lambda line: console.print(escape(line), soft_wrap=True, highlight=False)
    )
    counts = ladder.run()
    console.print(
        f"{counts['run']} cells run, {counts['kept']} kept, {counts['failed']} not run; in {results}", highlight=False
    )


@attack_app.command("results")
def write_results(
    results: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the cells.")] = Path("results"),
    plan: Annotated[
        Path | None, typer.Option(metavar="PLAN", help="The plan, so that the page can say what was not run.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The page, Markdown.")] = Path("results.md"),
) -> None:
    """Write the page of a ladder from its cells: the worst attack of every rung, both judges, transfer, settings, rules.

    Example:  `saferedir attack results results --plan benchmarks/ladder.toml --out docs/results.md`
    """
    from saferedir.bench.ladder.cells import read_cells
    from saferedir.bench.ladder.page import render
    from saferedir.bench.ladder.plan import read_plan
    from saferedir.utils.files import write_text

    cells = read_cells(results)
    write_text(out, render(cells, None if plan is None else read_plan(plan)))
    console.print(f"{len(cells)} cells, written to {out}", soft_wrap=True, highlight=False)


def _add(row: AttackRow) -> None:
    """The command of one attack; all take the same options."""

    @holds_out
    def command(
        out: Annotated[Path, typer.Option(help=f"Folder for {RECORD} and {SHEET}.")],
        prompts: Annotated[
            list[str] | None,
            typer.Argument(metavar="PROMPT…", help="Prompts that ask for the concept; or give --prompts."),
        ] = None,
        prompts_file: Annotated[
            Path | None,
            typer.Option(
                "--prompts", metavar="FILE", help="Prompts in a file: .txt (one a line), .csv, .tsv, .json or .jsonl."
            ),
        ] = None,
        limit: Annotated[int | None, typer.Option(min=1, help="Take the first N prompts only.")] = None,
        guard: Annotated[
            list[str] | None,
            typer.Option(
                metavar="ID", help="A guard: packaged, folder or hub id; repeat for more; none for the bare model."
            ),
        ] = None,
        judge: Annotated[
            str | None,
            typer.Option(
                metavar="PRESET",
                help="Whose judges decide, all agreeing; default: the guard's own concept, such as star.",
            ),
        ] = None,
        model: Annotated[
            str,
            typer.Option(metavar="ID", help="pictoworld, a diffusers folder, a checkpoint in one file, or a hub id."),
        ] = "pictoworld",
        preset: Annotated[
            Preset, typer.Option(help="quick: a small world on a CPU. paper: the published cost.")
        ] = Preset.QUICK,
        set_: Annotated[
            list[str] | None,
            typer.Option(
                "--set", metavar="NAME=VALUE", help="A setting of the attack, such as steps=100; repeat for more."
            ),
        ] = None,
        nfe: Annotated[
            int | None, typer.Option(min=0, help="Most denoiser rows of the search, for each prompt.")
        ] = None,
        te: Annotated[
            int | None, typer.Option(min=0, help="Most text-encoder rows of the search, for each prompt.")
        ] = None,
        evaluations: Annotated[int, typer.Option(min=0, help="Most candidates that are judged, for each prompt.")] = 51,
        images: Annotated[
            int, typer.Option(min=1, help="Images for each judged candidate; one success is enough.")
        ] = 1,
        on_unsafe: Annotated[
            OnUnsafe,
            typer.Option(help="A policy as of `protect`: what it blocks has failed. none: the guards by themselves."),
        ] = OnUnsafe.NONE,
        retries: Annotated[int, typer.Option(min=0, help="How often “verify” generates an unsafe image again.")] = 2,
        see_verifier: Annotated[
            bool,
            typer.Option("--see-verifier", help="A white-box attack looks through the guards' image verifiers, too."),
        ] = False,
        control: Annotated[
            Control,
            typer.Option(
                help="random-network: random denoiser weights, so that nothing should succeed. benign-reference: says that the "
                "prompts are benign ones."
            ),
        ] = Control.NONE,
        seed: Annotated[
            int, typer.Option(min=0, max=MAX_SEED, help="Seed of the search; judged images have others.")
        ] = 0,
        steps: Steps = 30,
        guidance: Annotated[float, typer.Option(min=0, help="Classifier-free guidance scale.")] = 4.0,
        call: Annotated[
            list[str] | None,
            typer.Option(metavar="NAME=VALUE", help="More arguments of the pipeline's call, such as height=1024."),
        ] = None,
        device: Device = "auto",
        force: Annotated[bool, typer.Option("--force", help="Replace an earlier result at --out.")] = False,
    ) -> None:
        texts = _texts(prompts or [], prompts_file, limit)
        from saferedir.attacks.budget import Budget
        from saferedir.attacks.registry import attack_class
        from saferedir.attacks.run import attack
        from saferedir.target import ProtectSettings

        settings = {name: _as_tuple(value) for name, value in named_values(set_ or [], "--set").items()}
        attack_class(row.name).config_class.preset(preset.value, **settings)
        arguments = {"num_inference_steps": steps, "guidance_scale": guidance, **named_values(call or [], "--call")}
        with staged_output(out, marker=RECORD, needs=16 * MEGABYTE, overwrite=force) as (folder, target):
            guards = load_guards(guard or [])
            decides = judge or _concept_of(guards)
            pipe = load_model(model, device=device)
            record = attack(
                pipe, guards, row.name, texts, judge=decides, preset=preset.value, settings=settings,
                budget=Budget(nfe=nfe, te=te, evaluations=evaluations), call=arguments, seed=seed, images=images,
                control=control.value, see_verifier=see_verifier,
                policy=None if on_unsafe is OnUnsafe.NONE else ProtectSettings(on_unsafe.value, retries=retries),
                progress=progress_bar(),
            )  # fmt: skip
            record.save(folder / RECORD)
            _save_sheet(record, folder / SHEET)
        _print(record, row)
        if not guards:
            errors.print("[bold yellow]This is the bare model[/]: no --guard was given.")
        console.print(f"Written to {target}", soft_wrap=True, highlight=False)

    paper = f" (arXiv:{row.paper})" if row.paper else ""
    command.__doc__ = (
        f"{row.title[0].upper()}{row.title[1:]}{paper}.\n\n"
        f"Threat model {row.knowledge}, sends {row.channel}, rung “{row.rung}”. The search costs {row.cost} a prompt under "
        "“quick”. The attack only proposes: every candidate is generated on noise seeds that the search has not used, and counts "
        "where all judges of the preset find the concept in an image that is not broken. Attack the bare model first: where an "
        "attack fails there, its failure on a guard says nothing.\n\n"
        f'Example:  `saferedir attack {row.name} "an image of a red star on grass" --judge star --out runs/{row.name}-bare`\n\n'
        f'Example:  `saferedir attack {row.name} "an image of a red star on grass" --guard pictoworld/star --out runs/{row.name}`'
    )
    attack_app.command(row.name, no_args_is_help=True, short_help=f"{row.knowledge}, {row.channel}: {row.title}")(
        command
    )


for _row in ATTACK_ROWS:
    _add(_row)


def _texts(given: list[str], file: Path | None, limit: int | None) -> list[str]:
    if bool(given) == (file is not None):
        hint = "PROMPT… / --prompts"
        raise typer.BadParameter("give prompts in quotes, or a file by --prompts, and not both.", param_hint=hint)
    if file is not None:
        from saferedir.prompts import read_prompts

        given = [item.text for item in read_prompts(file, "plain", allow_duplicates=True).items]
    return given[:limit]


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _concept_of(guards: list[Any]) -> str:
    """The preset that is called like the concept of the guards; one clear sentence where there is none."""
    from saferedir.judges.presets import preset_names

    concepts = {guard.config.concept for guard in guards}
    if len(concepts) == 1 and (concept := next(iter(concepts))) in preset_names():
        return str(concept)
    raise typer.BadParameter(
        "say who decides: the name of a preset such as star, uda2024 or recall2025 (docs/judges.md).",
        param_hint="--judge",
    )


def _save_sheet(record: Any, file: Path) -> None:
    """Untouched beside attacked, prompt by prompt."""
    import torch

    from saferedir.utils.figures import sample_sheet

    results = record.results[:SHOWN]
    shown = [("untouched", result.before.is_success, result.images[0]) for result in results]
    shown += [("attacked", result.is_success, result.images[1]) for result in results]
    captions = [f"{kind}: {'shown' if flag else 'not shown'}" for kind, flag, _ in shown]
    sample_sheet(torch.stack([image.float() for *_, image in shown]), captions, columns=len(results)).save(file)


def _print(record: Any, row: AttackRow) -> None:
    table = new_table(f"{row.name}, {row.knowledge}, {row.channel}", "what", ">shown, per cent (95 %)", ">n")
    rows: list[tuple[str, Any]] = [("untouched prompts", record.before), ("attacked", record.success)]
    rows += [(f"  by {name} alone", rate) for name, rate in record.success_by_judge().items()]
    live = record.live
    rows += [] if live is None else [("variants that the bare model understands", live)]
    for what, rate in rows:
        table.add_row(what, percent_cell(rate.to_dict()), str(rate.n))
    console.print(table)
