"""From a bench folder to its report: reads plan, cells, costs and a few pictures, and hands them to report/. Needs no model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saferedir.bench.cells import CellSpec
from saferedir.bench.planned import Planned, read_planned
from saferedir.bench.published import published
from saferedir.bench.records import BARE, CellRecord, Cost
from saferedir.bench.report import ReportData, Sample, write_report
from saferedir.bench.store import Store, read_json
from saferedir.errors import BenchError

#: prompts of each set that the picture grids show
SAMPLES = 6
CALIBRATIONS = "calibrations"


def report_folder(folder: Path, out: Path | None = None) -> tuple[Path, Path]:
    """Write report.html and report.md (into `out`, the folder itself by default); their paths.

    Calibrations of judges are read from `<folder>/calibrations/*.json` (`saferedir judge calibrate --out`); without one, the
    report calls the judge uncalibrated.
    """
    plan, store = read_planned(folder), Store(folder)
    records = store.read_cells([cell.name.slug for cell in plan.cells])
    if not records:
        raise BenchError(f"{folder} has no cells yet; end the bench with `saferedir bench run` first.")
    costs_path = folder / "costs.json"
    costs = tuple(Cost(**cost) for cost in read_json(costs_path)) if costs_path.is_file() else ()
    counted = {record.name for record in records}
    missing = [f"{cell.name.slug} was not counted yet." for cell in plan.cells if cell.name not in counted]
    missing += [f"{record.name.slug}: {record.error}" for record in records if record.error]
    data = ReportData(
        title=plan.title,
        description=plan.description,
        cells=tuple(records),
        costs=costs,
        samples=_samples(plan, records, Store((folder / plan.drawings_at).resolve())),
        calibrations=_calibrations(folder / CALIBRATIONS),
        published=tuple(published()),
        missing=(*plan.missing, *missing),
        made=_made(records),
    )
    return write_report(data, out or folder)


def _samples(plan: Planned, records: list[CellRecord], store: Store) -> tuple[Sample, ...]:
    """The first pictures of every prompt set, all guards beside the bare model."""
    whole = {record.name for record in records if not record.error}
    sets: dict[tuple[str, str, str, int], list[CellSpec]] = {}
    for cell in plan.cells:
        if cell.name in whole and cell.name.seed == plan.cells[0].name.seed:
            sets.setdefault((cell.name.model, cell.name.concept, cell.name.prompts, cell.name.seed), []).append(cell)
    samples = []
    for (model, concept, prompts, _), cells in sets.items():
        pictures = {cell.name.guard: _first_pictures(plan, cell.drawing, store) for cell in cells}
        texts = plan.prompts[cells[0].prompts].texts
        for index in range(min(SAMPLES, *map(len, pictures.values()))):
            shown = {guard: picture for guard, found in pictures.items() if (picture := found[index]) is not None}
            if BARE in shown:
                samples.append(Sample(model, concept, prompts, index, texts[index] if texts else None, shown))
    return tuple(samples)


def _first_pictures(plan: Planned, key: str, store: Store) -> list[bytes | None]:
    """The first picture of each of the first prompts."""
    shard = plan.shards[key][0]
    first: dict[int, bytes | None] = {}
    for prompt, image in zip(store.prompts_of(shard), store.images(shard), strict=True):
        first.setdefault(prompt, image)
    return list(first.values())[:SAMPLES]


def _calibrations(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Judge -> precision, recall and false positive rate, from `saferedir judge calibrate`."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        values = read_json(path)
        try:
            found[values["judge"]] = {name: values[name] for name in ("precision", "recall", "fpr")}
        except (KeyError, TypeError) as error:
            raise BenchError(
                f"{path} is no calibration ({error} is missing); make it with `saferedir judge calibrate`."
            ) from error
    return found


def _made(records: list[CellRecord]) -> str:
    versions = {name: version for record in records for name, version in record.versions.items()}
    return ", ".join(f"{name} {version}" for name, version in versions.items())
