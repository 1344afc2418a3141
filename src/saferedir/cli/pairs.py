"""`saferedir pairs build`: training prompts for a guard from a word and what should take its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saferedir.cli.common import choose_device, console, errors, escape, new_table, quiet
from saferedir.cli.options import MAX_SEED
from saferedir.cli.output import MEGABYTE, OutputError, check_file, check_space, holds_out

if TYPE_CHECKING:
    from saferedir.training.saferedir.dataset import Pair
    from saferedir.training.saferedir.pairs.plan import BuiltPairs, PairPlan, PairReport

pairs_app = typer.Typer(
    name="pairs", help="Make training prompts for a guard.", no_args_is_help=True, rich_markup_mode="markdown"
)
MAX_LEAKS_SHOWN = 3
ENOUGH = 100  # pairs below which a fifth of them may be too few to calibrate on

Anchors = Annotated[
    list[str] | None,
    typer.Option("--anchor", metavar="TEXT", help="What takes the concept's place; give several for closer lengths."),
]
Kind = Annotated[str, typer.Option(help="object, style, person or attribute: which sentences fit the concept.")]
Synonyms = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help='Other names, one a line, or JSON {"synonyms": […], "near": […]}.'),
]
Captions = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Ordinary captions: text, or JSONL or CSV with caption, prompt or text."),
]
Count = Annotated[int, typer.Option(min=1, help="Pairs of an unsafe and a safe prompt.")]


@pairs_app.callback()
def _group() -> None:
    """Make training prompts for a guard."""


@pairs_app.command(no_args_is_help=True)
@holds_out
def build(
    concept: Annotated[str, typer.Option(metavar="TEXT", help="What must not appear; capitals mark a name.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON-lines file to write.")],
    anchor: Anchors = None,
    kind: Kind = "object",
    synonyms: Synonyms = None,
    captions: Captions = None,
    evaluation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts of your evaluation; copies of them are left out.")
    ] = None,
    count: Count = 400,
    benign: Annotated[
        int | None, typer.Option(min=0, help="Benign prompts; default: two thirds of the pairs' number.")
    ] = None,
    synonym_share: Annotated[float, typer.Option(min=0, max=1, help="Share of pairs that say a synonym.")] = 0.3,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Whose tokenizer measures length: pictoworld, a folder, a hub id. Default: words, without padding.",
        ),
    ] = None,
    padding: Annotated[
        bool,
        typer.Option(help="With --model: let neutral words even lengths out, as often with the concept as without it."),
    ] = True,
    paraphrase_model: Annotated[
        str | None, typer.Option(metavar="ID", help="A transformers text model, folder or hub id, for paraphrases.")
    ] = None,
    paraphrase_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of rows to paraphrase, with such a model.")
    ] = 0.2,
    device: Annotated[str, typer.Option(help="Where the text model runs: auto, cpu, cuda, …")] = "auto",
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of every choice.")] = 0,
    show: Annotated[int, typer.Option(min=0, help="Rows to print as a sample.")] = 8,
    force: Annotated[bool, typer.Option("--force", help="Replace the file at --out.")] = False,
) -> None:
    """Write pairs of prompts that differ in the concept only, and benign prompts around them.

    Near concepts in the synonyms file become hard negatives: lines that must not be flagged.

    Example:  `saferedir pairs build --concept "Van Gogh" --kind style --anchor impressionism --out pairs.jsonl`
    """
    sources = (synonyms, captions, evaluation)
    _check_file(out, [path for path in sources if path is not None], force)
    plan = read_plan(
        concept, anchor, kind=kind, synonyms=synonyms, count=count, benign=benign, synonym_share=synonym_share,
        paraphrase_share=paraphrase_share, padding=padding, seed=seed,
    )  # fmt: skip
    texts = read_captions(captions)
    from saferedir.training.saferedir.pairs.files import PROMPT_COLUMNS, read_prompts

    tested = [] if evaluation is None else read_prompts(evaluation, PROMPT_COLUMNS)
    check_space(out, MEGABYTE)
    from saferedir.training.saferedir.pairs.build import build_pairs
    from saferedir.training.saferedir.pairs.lengths import load_lengths

    lengths = load_lengths(model)
    paraphrase = None if paraphrase_model is None else _load_paraphraser(paraphrase_model, device, seed)
    with console.status("building pairs"):
        built = build_pairs(plan, captions=texts, evaluation=tested, lengths=lengths, paraphrase=paraphrase)
    save_pairs(built.rows, out)
    show_samples(built, show, seed)
    show_report(built.report, checked=len(tested) if evaluation is not None else None)
    if plan.count < ENOUGH:
        errors.print(f"{plan.count} pairs are few: training a guard wants {ENOUGH} or more.", highlight=False)
    console.print(
        f"{plan.count} pairs and {plan.lines} benign prompts written to {out}", soft_wrap=True, highlight=False
    )


def read_plan(concept: str, anchors: list[str] | None, *, synonyms: Path | None, **settings: Any) -> PairPlan:
    """A plan from the options of a command, with the synonyms file read."""
    if not concept.strip():
        raise typer.BadParameter("the concept needs a name.", param_hint="--concept")
    if not anchors:
        raise typer.BadParameter("say what should take the concept's place.", param_hint="--anchor")
    from saferedir.training.saferedir.pairs.files import read_synonyms
    from saferedir.training.saferedir.pairs.plan import PairPlan

    names, near = ([], []) if synonyms is None else read_synonyms(synonyms)
    return PairPlan(concept, tuple(anchors), synonyms=tuple(names), near=tuple(near), **settings)


def read_captions(path: Path | None) -> list[str]:
    """Captions of the file, none without one."""
    from saferedir.training.saferedir.pairs.files import read_prompts

    return [] if path is None else read_prompts(path)


def save_pairs(rows: Sequence[Pair], out: Path) -> None:
    """Write a pairs file, whole or not at all."""
    from saferedir.training.saferedir.dataset import write_pairs

    write_pairs(rows, out)


def show_samples(built: BuiltPairs, count: int, seed: int) -> None:
    """A table of some rows, half of them pairs."""
    import random

    rng = random.Random(seed)
    pairs = [pair for pair in built.rows if pair.unsafe is not None]
    lines = [pair for pair in built.rows if pair.unsafe is None]
    from_lines = min(len(lines), max(count // 3, count - len(pairs)))
    from_pairs = min(len(pairs), count - from_lines)
    rows = rng.sample(pairs, from_pairs) + rng.sample(lines, from_lines)
    if rows:
        table = new_table("Samples", "unsafe", "safe")
        for row in rows:
            table.add_row("–" if row.unsafe is None else escape(row.unsafe), escape(row.safe))
        console.print(table)


def show_report(report: PairReport, *, checked: int | None = None) -> None:
    """A table of what was made and what was left out; `checked`: how many evaluation prompts were compared."""
    table = new_table("Pairs", "what", ">number")
    rows = report.pairs + report.benign
    origins = ", ".join(f"{number} from {origin}" for origin, number in report.origins.items())
    for what, number in (
        ("pairs", f"{report.pairs}"),
        ("benign lines", f"{report.benign}"),
        ("  of them near the concept (hard negatives)", f"{report.hard_negatives}"),
        ("rows by origin", origins),
        ("balance: rows with an unsafe prompt", f"{100 * report.pairs / rows:.0f} %"),
        ("pairs that say a synonym", f"{report.with_synonym} ({100 * report.with_synonym / report.pairs:.0f} %)"),
        (
            f"pairs of equal length in {report.unit}",
            f"{report.same_length} ({100 * report.same_length / report.pairs:.0f} %)",
        ),
        ("  of them by an added neutral word", f"{report.padded}"),
        ("balance: a neutral word in unsafe, safe, benign prompts", _filler_shares(report)),
        ("duplicates removed", f"{report.refused['duplicates']}"),
        ("leaks into the evaluation removed", "not checked" if checked is None else f"{report.refused['leaks']}"),
    ):
        table.add_row(what, number)
    for reason in sorted(set(report.refused) - {"duplicates", "leaks"}):
        table.add_row(f"left out: {reason}", f"{report.refused[reason]}")
    console.print(table)
    for ours, theirs in report.leaks[:MAX_LEAKS_SHOWN]:
        console.print(f"leak: {escape(repr(ours))} is {escape(repr(theirs))} of the evaluation", highlight=False)
    if report.benign and not report.hard_negatives:
        _warn(
            "there are no hard negatives: name things that are near the concept but harmless in "
            '--synonyms FILE, as {"synonyms": [...], "near": [...]}.'
        )
    if not report.same_length:
        _warn(
            f"no pair has equal length in {report.unit}, and a guard learns best from pairs whose other words keep their places: "
            "give anchors of the concept's length (--anchor may be repeated)"
            + ("." if report.unit == "tokens" else ", and --model, whose tokenizer measures.")
        )
    if checked is None:
        _warn(
            "leaks not checked: give --evaluation FILE to `saferedir pairs build` to leave copies of its prompts out."
        )


def _filler_shares(report: PairReport) -> str:
    totals = {"unsafe": report.pairs, "safe": report.pairs, "benign": report.benign}
    return ", ".join(f"{100 * report.with_filler[side] / max(1, rows):.0f} %" for side, rows in totals.items())


def _warn(sentence: str) -> None:
    errors.print(f"[bold yellow]warning:[/] {escape(sentence)}", soft_wrap=True, highlight=False)


def _load_paraphraser(name: str, device: str, seed: int) -> Any:
    target = choose_device(device)
    from saferedir.training.saferedir.pairs import paraphrase

    quiet()
    with console.status(f"loading {escape(name)}"):
        return paraphrase.load_paraphraser(name, device=target, seed=seed)


def _check_file(out: Path, sources: Sequence[Path], force: bool) -> None:
    if any(path.expanduser().resolve() == out for path in sources):
        raise OutputError(f"{out} is also read from; choose another --out.")
    check_file(out, force)
