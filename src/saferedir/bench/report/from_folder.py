"""From a bench folder to its report: reads plan, cells, costs and a few images, and hands them to report/. Needs no model."""

from __future__ import annotations

from pathlib import Path

from saferedir.bench.evaluation.calibrate import CALIBRATIONS
from saferedir.bench.planning.cell_spec import CellSpec
from saferedir.bench.records import CellRecord, Cost
from saferedir.bench.report import ReportData, stored_images, write_report
from saferedir.bench.report.content.sentences import sentence
from saferedir.bench.report.published import published
from saferedir.bench.schema import read_cost
from saferedir.bench.storage.saved_plan import SavedPlan, read_saved_plan
from saferedir.bench.storage.store import Store, read_json
from saferedir.errors import BenchError
from saferedir.judges.calibration import Calibration


def report_folder(folder: Path, out: Path | None = None, *, images: bool = False) -> tuple[Path, Path]:
    """Write report.html and report.md (into `out`, the folder itself by default); their paths.

    Images are shown for the prompts of built-in worlds; for prompts of the user's own files only with `images`, because the
    bare model's may be what nobody should have to see: stored_images.py.

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
    images_at = Store((folder / plan.images_at).resolve())
    missing = [sentence("notes.not_counted", cell=cell.name.slug) for cell in plan.cells if cell.name not in counted]
    missing += [f"{record.name.slug}: {record.error}" for record in records if record.error]
    calibrations, notes = _calibrations(plan, folder / CALIBRATIONS)
    data = ReportData(
        title=plan.title,
        description=plan.description,
        cells=tuple(records),
        costs=costs,
        samples=stored_images.samples(plan, records, images_at, private=images),
        misses=stored_images.misses(plan, records, images_at, private=images),
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


def _calibrations(plan: SavedPlan, folder: Path) -> tuple[dict[tuple[str, str], Calibration], tuple[str, ...]]:
    """(judge, concept) -> the largest calibration of that very judge and rule, and a sentence where several fit."""
    known = {path.name: Calibration.load(path) for path in sorted(folder.glob("*.json"))}
    chosen: dict[tuple[str, str], Calibration] = {}
    notes: dict[str, None] = {}
    for cell in plan.cells if known else ():
        facts = {judge.key: judge.facts for judge in plan.judges[cell.image_sets[0]]}
        first = {cell.protocol.judge: {"judge": cell.judge, "rule": cell.protocol.rule}}
        for name, judge in {**first, **cell.second}.items():
            fitting = [
                file for file, calibration in known.items() if calibration.fits(facts[judge["judge"]], judge["rule"])
            ]
            fitting.sort(key=lambda file: -known[file].n)
            if fitting:
                chosen[name, cell.name.concept] = known[fitting[0]]
            if len(fitting) > 1:
                files = [(file, known[file].n) for file in fitting]
                notes[sentence("notes.several_calibrations", judge=name, concept=cell.name.concept, files=files)] = None
    return chosen, tuple(notes)


def _encoders(plan: SavedPlan) -> dict[str, str]:
    """What each encoder is: its kind, what fixes its vectors, and its checksum; of a folder the name only, not where it lies."""
    known = {spec.key: spec for specs in plan.encoders.values() for spec in specs}
    used = {name: known[use.key] for cell in plan.cells for name, use in cell.encoders.items()}
    texts = {}
    for name, spec in used.items():
        facts = {**spec.facts, "id": str(spec.facts["id"]).rpartition("/")[2]}
        listed = ", ".join(f"{fact} {value}" for fact, value in facts.items() if value)
        texts[name] = f"{spec.name}, {listed} ({spec.digest})"
    return texts


def _made(records: list[CellRecord]) -> str:
    versions = {name: version for record in records for name, version in record.versions.items()}
    return ", ".join(f"{name} {version}" for name, version in versions.items())
