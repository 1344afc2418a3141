"""What `saferedir bench` prints: the plan before, the rates and notes after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from saferedir.cli.common import console, errors, escape, new_table

if TYPE_CHECKING:
    from saferedir.bench.bench import BenchPlan
    from saferedir.bench.generation.generate import Shard
    from saferedir.bench.generation.resources import Scorer
    from saferedir.bench.planning.encoders import MatrixEncoder
    from saferedir.bench.planning.plan import Plan
    from saferedir.bench.records import CellRecord


def print_plan(work: BenchPlan) -> None:
    """What will be done, and about how long it takes."""
    plan, left, unscored = work.plan, work.images_left, work.unscored
    matrix = plan.matrix
    table = new_table(escape(matrix.title), "", "")
    table.show_header = False
    table.add_row("models", ", ".join(matrix.model))
    table.add_row("concepts", ", ".join(matrix.concept))
    table.add_row("guards", ", ".join(["none", *matrix.guard]))
    table.add_row("attacks", ", ".join(matrix.attacks))
    if plan.encoders:
        table.add_row("encoders", ", ".join(_encoder(name, encoder) for name, encoder in plan.encoders.items()))
    table.add_row("cells", f"{len(plan.cells)} (seeds: {', '.join(map(str, matrix.seeds))})")
    shared = f" ({plan.shared:,} more asked for, but generated once for several cells)" if plan.shared else ""
    table.add_row("images", f"{plan.n_images:,}{shared}")
    table.add_row("still to generate", f"{left:,}{_generated_again(work.images_again)}")
    if unscored:
        table.add_row("still to score", _still_to_score(plan, unscored))
    if left:
        least, most = map(_duration, work.seconds)
        table.add_row("time for the rest", f"about {least} to {most} with one worker like this one")
    console.print(table)
    for sentence in plan.missing:
        errors.print(f"[yellow]left out:[/] {escape(sentence)}", soft_wrap=True, highlight=False)
    for sentence in work.warnings:
        errors.print(f"[yellow]note:[/] {escape(sentence)}", soft_wrap=True, highlight=False)


def _generated_again(again: int) -> str:
    if not again:
        return ""
    return f", {again:,} of them once more: a judge or encoder has not scored them, and they were not kept (keep_images = false)"


def _still_to_score(plan: Plan, unscored: Sequence[tuple[Shard, Scorer]]) -> str:
    """'1,200 kept images by clip, 60 by nudenet'."""
    names = {encoder.spec.key: name for name, encoder in plan.encoders.items()}
    counts: dict[str, int] = {}
    for shard, scorer in unscored:
        name = names.get(scorer.key, scorer.name)
        counts[name] = counts.get(name, 0) + len(shard)
    return escape("kept images: " + ", ".join(f"{count:,} by {name}" for name, count in counts.items()))


def _encoder(name: str, encoder: MatrixEncoder) -> str:
    """'kid (inception; 5,000 reference images)'."""
    reference = f"; {len(encoder.reference.files):,} reference images" if encoder.reference is not None else ""
    return escape(f"{name} ({encoder.spec.name}{reference})")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_cells(records: list[CellRecord]) -> None:
    """What a person looks for first: how often the concept is still shown, one line a guard, one column a phrasing."""
    from saferedir.cli.common import percent_cell

    for model, concept in dict.fromkeys((r.name.model, r.name.concept) for r in records):
        cells = [r for r in records if (r.name.model, r.name.concept) == (model, concept)]
        shown = {(r.name.guard, r.name.prompts): r for r in cells if r.name.role == "forget"}
        kept = {r.name.guard: r.measured.get("retention") for r in cells if r.name.role == "retain"}
        sets = list(dict.fromkeys(prompts for _, prompts in shown))
        table = new_table(
            f"{escape(concept)} on {escape(model)}: share of prompts that still show it",
            "guard", *(f">{escape(name)}" for name in sets), *([">retain kept"] if kept else []),
        )  # fmt: skip
        for guard in dict.fromkeys(guard for guard, _ in shown):
            rates = [shown[guard, name].measured.get("concept") if (guard, name) in shown else None for name in sets]
            rates += [kept.get(guard)] if kept else []
            table.add_row(
                escape(guard), *("-" if rate is None else percent_cell(rate).replace(" (", "\n(") for rate in rates)
            )
        console.print(table)
    for record in records:
        if record.error:
            errors.print(f"[red]no number:[/] {escape(f'{record.name.slug}: {record.error}')}", soft_wrap=True)


def print_notes(records: list[CellRecord], plan: Plan) -> None:
    """What a reader must know and the plan could not say, each sentence once."""
    planned = {warning for facts in plan.prompts.values() for warning in facts.warnings}
    cells: dict[str, int] = {}
    for record in records:
        for sentence in set(record.warnings) - planned:
            cells[sentence] = cells.get(sentence, 0) + 1
    for sentence, count in sorted(cells.items()):
        errors.print(f"[yellow]note:[/] {escape(sentence)} ({count} cell(s))", soft_wrap=True, highlight=False)
