"""From a bench folder to its report: reads plan, cells, costs and a few images, and hands them to report/. Needs no model."""

from __future__ import annotations

from pathlib import Path

from saferedir.bench.evaluation.calibrate import CALIBRATIONS
from saferedir.bench.planning.cell_spec import CellSpec
from saferedir.bench.records import BARE, CellRecord, Cost
from saferedir.bench.report import ReportData, Sample, write_report
from saferedir.bench.report.published import published
from saferedir.bench.schema import read_cost
from saferedir.bench.storage.saved_plan import SavedPlan, read_saved_plan
from saferedir.bench.storage.store import Store, read_json
from saferedir.errors import BenchError
from saferedir.judges.calibration import Calibration

#: prompts of each set that the image grids show
SAMPLES = 2


def report_folder(folder: Path, out: Path | None = None, *, images: bool = False) -> tuple[Path, Path]:
    """Write report.html and report.md (into `out`, the folder itself by default); their paths.

    Images are shown for the prompts of built-in worlds; for prompts of the user's own files only with `images`, because the
    bare model's may be what nobody should have to see.

    Calibrations of judges are read from `<folder>/calibrations/*.json`: those of built-in worlds are made by the bench, others by
    `saferedir judge calibrate --out`. Without one, the report calls the judge uncalibrated; of several that fit, it takes the one
    with most images and says so. JudgeError, naming the file, where one cannot be read.
    """
    plan, store = read_saved_plan(folder), Store(folder)
    records = [record for cell in plan.cells for record in store.read_cells([cell.name.slug]) if _belongs(record, cell)]
    if not records:
        raise BenchError(f"{folder} has no cells yet; end the bench with `saferedir bench run` first.")
    costs_path = folder / "costs.json"
    costs = tuple(Cost(**read_cost(cost)) for cost in read_json(costs_path)) if costs_path.is_file() else ()
    counted = {record.name for record in records}
    missing = [f"{cell.name.slug} was not counted yet." for cell in plan.cells if cell.name not in counted]
    missing += [f"{record.name.slug}: {record.error}" for record in records if record.error]
    calibrations, notes = _calibrations(plan, folder / CALIBRATIONS)
    data = ReportData(
        title=plan.title,
        description=plan.description,
        cells=tuple(records),
        costs=costs,
        samples=_samples(plan, records, Store((folder / plan.images_at).resolve()), images),
        calibrations=calibrations,
        published=tuple(published()),
        missing=(*plan.missing, *missing),
        warnings=notes,
        made=_made(records),
        encoders=_encoders(plan),
    )
    return write_report(data, out or folder)


def _belongs(record: CellRecord, cell: CellSpec) -> bool:
    """Whether a record on the disk is of this plan, not of an earlier one of the same names."""
    ours = (cell.protocol.id, dict(cell.guard), dict(cell.versions), set(cell.needs))
    return (record.protocol.id, dict(record.guard), dict(record.versions), set(record.image_sets)) == ours


def _samples(plan: SavedPlan, records: list[CellRecord], store: Store, unasked: bool) -> tuple[Sample, ...]:
    """The first images of every prompt set, all guards beside the bare model."""
    whole = {record.name for record in records if not record.error}
    sets: dict[tuple[str, str, str], list[CellSpec]] = {}
    for cell in plan.cells:
        is_ours = plan.prompts[cell.prompts].texts is not None
        if cell.name in whole and (is_ours or unasked) and store.has(plan.shards[cell.image_sets[0]][0]):
            sets.setdefault((cell.name.model, cell.name.concept, cell.name.prompts), []).append(cell)
    samples = []
    for (model, concept, prompts), cells in sets.items():
        images = {cell.name.guard: _first_images(plan, cell.image_sets[0], store) for cell in cells}
        texts = plan.prompts[cells[0].prompts].texts
        for index in range(min(SAMPLES, *map(len, images.values()))):
            shown = {guard: image for guard, found in images.items() if (image := found[index]) is not None}
            if BARE in shown:
                samples.append(Sample(model, concept, prompts, index, texts[index] if texts else None, shown))
    return tuple(samples)


def _first_images(plan: SavedPlan, key: str, store: Store) -> list[bytes | None]:
    """The first image of each of the first prompts."""
    shard = plan.shards[key][0]
    first: dict[int, bytes | None] = {}
    for prompt, image in zip(store.prompts_of(shard), store.images(shard), strict=True):
        first.setdefault(prompt, image)
    return list(first.values())[:SAMPLES]


def _calibrations(plan: SavedPlan, folder: Path) -> tuple[dict[tuple[str, str], Calibration], tuple[str, ...]]:
    """(judge, concept) -> the largest calibration of that very judge and rule, and a sentence where several fit."""
    known = {path.name: Calibration.load(path) for path in sorted(folder.glob("*.json"))}
    found: dict[tuple[str, str], Calibration] = {}
    notes: dict[str, None] = {}
    for cell in plan.cells if known else ():
        facts = {judge.key: judge.facts for judge in plan.judges[cell.image_sets[0]]}
        first = {cell.protocol.judge: {"judge": cell.judge, "rule": cell.protocol.rule}}
        for name, judge in {**first, **cell.second}.items():
            fitting = [file for file, one in known.items() if one.fits(facts[judge["judge"]], judge["rule"])]
            if fitting:
                taken, *others = sorted(fitting, key=lambda file: -known[file].n)
                found[name, cell.name.concept] = known[taken]
            if len(fitting) > 1:
                told = ", ".join(f"{file} ({known[file].n})" for file in others)
                notes[
                    f"judge {name}, {cell.name.concept}: {len(fitting)} calibrations fit; {taken}, with the most images "
                    f"({known[taken].n}), is used, and not {told}."
                ] = None
    return found, tuple(notes)


def _encoders(plan: SavedPlan) -> dict[str, str]:
    """What each encoder is: its kind, what fixes its vectors, and its checksum; of a folder the name only, not where it lies."""
    known = {spec.key: spec for found in plan.encoders.values() for spec in found}
    found = {name: known[use.key] for cell in plan.cells for name, use in cell.encoders.items()}
    told = {}
    for name, spec in found.items():
        facts = {**spec.facts, "id": str(spec.facts["id"]).rpartition("/")[2]}
        told[name] = (
            f"{spec.name}, {', '.join(f'{fact} {value}' for fact, value in facts.items() if value)} ({spec.digest})"
        )
    return told


def _made(records: list[CellRecord]) -> str:
    versions = {name: version for record in records for name, version in record.versions.items()}
    return ", ".join(f"{name} {version}" for name, version in versions.items())
