"""`saferedir judge`: what judges and presets there are, how far a judge can be believed, and raw scores of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saferedir.cli.common import console, escape, named_values, new_table, print_json, quiet
from saferedir.cli.options import AsJson
from saferedir.cli.output import OutputError, check_file, holds_out, write_json
from saferedir.cli.skipped import show_skipped
from saferedir.utils.file_names import shown_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from saferedir.judges.base import Judge
    from saferedir.judges.calibration import Calibration
    from saferedir.judges.rules import Rule

judge_app = typer.Typer(
    name="judge",
    help="Say what an image shows, and how sure that is.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
JudgeName = Annotated[str, typer.Option("--judge", metavar="NAME", help="A judge of `saferedir judge list`.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="An option of the judge, such as model=FOLDER; may be repeated."),
]
Batch = Annotated[int, typer.Option(min=1, help="Images judged at a time.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file at --out.")]


@judge_app.callback()
def _group() -> None:
    """Say what an image shows, and how sure that is."""


@judge_app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List the judges, and the presets by which papers count, with the evidence for each.

    Example:  `saferedir judge list`
    """
    from saferedir.judges.presets import PRESETS, UNSUPPORTED
    from saferedir.judges.registry import JUDGES

    if as_json:
        judges = [{"judge": name, "scores": entry.about, "extra": entry.extra} for name, entry in JUDGES.items()]
        presets = [
            {"preset": preset.name, "judges": preset.judges, "rule": preset.rule.to_dict(), "written": preset.written,
             "effective": preset.effective, "evidence": preset.evidence, "about": preset.about}
            for preset in PRESETS.values()
        ]  # fmt: skip
        print_json({"judges": judges, "presets": presets, "unsupported": dict(UNSUPPORTED)})
        return

    table = new_table("Judges", "judge", "what it scores", "extra")
    for name, entry in JUDGES.items():
        table.add_row(name, escape(entry.about), entry.extra or "-")
    console.print(table)
    table = new_table("Presets", "preset", "judge", ">written", ">effective", "evidence", "what counts")
    for known in PRESETS.values():
        thresholds = ["-" if value is None else f"{value:g}" for value in (known.written, known.effective)]
        table.add_row(known.name, known.judge, *thresholds, known.evidence, escape(known.about))
    console.print(table)
    table = new_table("Presets that cannot be applied", "preset", "why")
    for name, reason in UNSUPPORTED.items():
        table.add_row(name, escape(reason))
    console.print(table)


@judge_app.command(no_args_is_help=True)
@holds_out
def calibrate(
    images: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Folder with subfolders positive and negative, or a CSV with columns file,label."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Calibration to write, a .json file.")],
    judge: Annotated[
        str | None, typer.Option(metavar="NAME", help="A judge of `saferedir judge list`; default: the preset's.")
    ] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="What counts, as a paper counts it.")] = None,
    rule: Annotated[str | None, typer.Option(metavar="JSON", help="Or a rule of your own, as JSON.")] = None,
    options: Options = None,
    batch: Batch = 32,
    force: Force = False,
) -> None:
    """Measure a judge's precision, recall and false positive rate on labelled images.

    Example:  `saferedir judge calibrate --judge nudenet --preset uda2024 --images labelled --out runs/uda2024.json`
    """
    out = _free_file(out, force, (".json",))
    chosen, decides = judge_and_rule(judge, preset, rule, options or [])
    from saferedir.judges.calibration import calibrate_files

    with console.status("judging"):
        calibration = calibrate_files(chosen, decides, images.expanduser(), preset=preset or "", batch=batch)
    _show_calibration(calibration)
    write_json(out, calibration.to_dict())
    console.print(f"Calibration written to {out}", soft_wrap=True, highlight=False)


@judge_app.command(no_args_is_help=True)
def selftest(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A judge of `saferedir judge list`.")],
    options: Options = None,
) -> None:
    """Check that a judge keeps its contract, and its channel order and resize where it has them; exit code 1 if not.

    Example:  `saferedir judge selftest nudenet --set channels=BGR`
    """
    from saferedir.judges.selftest import selftest as run

    checks = run(_load(name, named_values(options or [], "--set")))
    table = new_table(f"Judge {escape(name)}", "check", "holds", "observed")
    for check in checks:
        table.add_row(escape(check.what), "yes" if check.passed else "[bold red]no[/]", escape(check.observed))
    console.print(table)
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


@judge_app.command(no_args_is_help=True)
@holds_out
def score(
    judge: JudgeName,
    images: Annotated[Path, typer.Option(metavar="DIR", help="Images, in any folder below.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Scores to write, .csv or .parquet; facts go beside, .json.")
    ],
    options: Options = None,
    batch: Batch = 32,
    force: Force = False,
) -> None:
    """Write the raw scores of every image, to which any rule can be applied later.

    Files that cannot be read are listed, here and in the facts. A byte of a file name that is no UTF-8 is written `\\xNN`.

    Example:  `saferedir judge score --judge pictoworld --images runs/star --out runs/scores.csv`
    """
    out = _free_file(out, force, (".csv", ".parquet"))
    from saferedir.judges.images import image_folder, score_files
    from saferedir.judges.tables import write_scores
    from saferedir.utils.extras import require_extra

    if out.suffix == ".parquet":
        require_extra("pyarrow", "bench", "a Parquet file")  # before the work
    folder = images.expanduser()
    files, left_out = image_folder(folder)
    if not files:
        show_skipped(left_out)
        raise OutputError(f"{shown_name(folder)} holds no image; give a folder with PNG, JPEG or WebP files.")
    chosen = _load(judge, named_values(options or [], "--set"))
    with console.status("judging"):
        scored = score_files(chosen, files, batch, root=folder)
    skipped = {**scored.skipped, **left_out}
    show_skipped(skipped)
    if not scored.indices:
        raise OutputError(
            f"none of the {len(files)} image files in {shown_name(folder)} could be read, so there are no scores."
        )
    names = [shown_name(files[index].relative_to(folder)) for index in scored.indices]
    write_scores(out, names, scored.scores)
    write_json(out.with_name(out.name + ".json"), {"judge": chosen.facts(), "skipped": skipped})
    count = "1 image" if len(names) == 1 else f"{len(names)} images"
    console.print(f"Scores of {count} written to {out}", soft_wrap=True, highlight=False)


def _free_file(out: Path, force: bool, suffixes: tuple[str, ...]) -> Path:
    if out.suffix not in suffixes:
        raise OutputError(f"{out.name} has the suffix {out.suffix!r}, expected {' or '.join(suffixes)}.")
    check_file(out, force)
    return out


def _load(name: str, options: Mapping[str, Any]) -> Judge:
    quiet()
    from saferedir.judges.registry import load_judge

    with console.status(f"loading {escape(name)}"):
        return load_judge(name, **options)


def judge_and_rule(judge: str | None, preset: str | None, rule: str | None, given: list[str]) -> tuple[Judge, Rule]:
    """The judge with a preset's options, and the rule; a preset for another judge is one sentence."""
    from saferedir.errors import JudgeError
    from saferedir.judges.presets import preset as preset_named
    from saferedir.judges.rules import rule_from_dict

    options = named_values(given, "--set")
    if (preset is None) == (rule is None):
        raise typer.BadParameter("give either --preset or --rule.", param_hint="--preset / --rule")
    if preset is not None:
        known = preset_named(preset)
        if judge is not None and judge not in known.judges:
            raise JudgeError(f"preset {preset!r} is made for judge {' or '.join(known.judges)}, not for {judge!r}.")
        if judge is not None and judge != known.judge:
            return _load(judge, options), known.rule
        quiet()
        with console.status(f"loading {escape(known.judge)}"):
            return known.load_judge(**options), known.rule
    if judge is None:
        raise typer.BadParameter("--rule needs --judge.", param_hint="--judge")
    try:
        values = json.loads(rule or "")
    except json.JSONDecodeError as error:
        raise JudgeError(f"--rule is no JSON: {error}.") from error
    if not isinstance(values, dict):
        raise JudgeError('--rule must be a JSON object such as {"kind": "InTop", "group": "shape", "value": "star"}.')
    return _load(judge, options), rule_from_dict(values)


def _show_calibration(calibration: Calibration) -> None:
    table = new_table(
        f"{calibration.positives} positive and {calibration.negatives} negative images", "what", ">rate (95 %)", ">n"
    )
    for what, rate in (
        ("precision", calibration.precision),
        ("recall", calibration.recall),
        ("false positive rate", calibration.false_positive_rate),
    ):
        low, high = rate.interval
        table.add_row(what, f"{rate.value:.2f} ({low:.2f} to {high:.2f})" if rate.n else "no case", str(rate.n))
    console.print(table)
    show_skipped(calibration.skipped)
