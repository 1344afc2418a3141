"""From accepted reports to a guard: pairs, training, and a bench cell before and after. Nothing of a running service changes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saferedir.guard import Guard
from saferedir.server.config import ModelSettings, ReportSettings, Settings
from saferedir.server.engine.fingerprints import guard_fingerprint
from saferedir.server.errors import ServerError
from saferedir.server.reports.store import ReportRow, ReportStore, pairs_of
from saferedir.training.saferedir.dataset import Pair, read_pairs
from saferedir.training.saferedir.train import train_saferedir
from saferedir.training.saferedir.train_config import TrainConfig
from saferedir.utils.progress import SILENT, Progress

#: of the embedded world's own pairs, where the configuration names no file
_PAIRS, _BENIGN = 400, 400


@dataclass(frozen=True)
class Plan:
    """What a retraining will do.

    Attributes:
        guard: the guard that is replaced, as the configuration names it.
        pairs: those it was made from, and those of the reports.
        reports: the accepted ones.
        out: folder of the new guard; another set of reports, or other settings, have another.
    """

    model: ModelSettings
    concept: str
    guard: str
    pairs: tuple[Pair, ...]
    reports: tuple[ReportRow, ...]
    config: TrainConfig
    out: Path
    n: int


def make_plan(settings: Settings, store: ReportStore, concept: str, model: str | None = None) -> Plan:
    """The plan for a concept.

    Raises:
        ServerError: no guard of the model keeps the concept out, there is no accepted report, or nobody knows the pairs that the
            guard was made from.
    """
    chosen = settings.models[0] if model is None else settings.model(model)
    if chosen is None:
        raise ServerError(f"there is no model {model!r} in the configuration.")
    guard = _guard_of(chosen, concept)
    reports = tuple(store.reports(status="accepted", concept=concept))
    new = [Pair(unsafe, safe) for unsafe, safe in pairs_of(reports)]
    if not new:
        raise ServerError(f"there is no accepted report on {concept!r}; accept one first.")
    pairs = tuple(dict.fromkeys([*base_pairs(settings.reports, chosen, concept), *new]))
    config = TrainConfig(**settings.reports.training)
    facts = [guard, [[pair.unsafe, pair.safe] for pair in pairs], settings.reports.training]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    out = Path(settings.reports.folder) / f"{re.sub('[^A-Za-z0-9-]+', '-', concept)}-{digest}"
    return Plan(chosen, concept, guard, pairs, reports, config, out, settings.reports.n)


def _guard_of(model: ModelSettings, concept: str) -> str:
    for name in model.guard_names:
        guard: Guard[Any] = Guard.from_pretrained(name)
        if guard.config.concept == concept:
            if guard.method != "saferedir":
                raise ServerError(
                    f"the guard {name!r} is of the method {guard.method!r}; only SafeRedir's are retrained."
                )
            return name
    raise ServerError(f"no guard of the model {model.name!r} keeps {concept!r} out.")


def base_pairs(settings: ReportSettings, model: ModelSettings, concept: str) -> list[Pair]:
    """The pairs that the guard was made from: the file that the configuration names, or the embedded world's own."""
    if concept in settings.pairs:
        return read_pairs(Path(settings.pairs[concept]))
    from saferedir.pictoworld.edit_recipe import edit_rows
    from saferedir.pictoworld.tasks import TASKS

    if (model.source or model.name) == "pictoworld" and concept in TASKS:
        return edit_rows(TASKS[concept], _PAIRS, _BENIGN)
    raise ServerError(
        f"nobody knows the prompt pairs that the guard against {concept!r} was made from; name the file as "
        f'[reports.pairs] "{concept}" = "FILE" in the configuration.'
    )


def retrain(plan: Plan, store: ReportStore, progress: Progress = SILENT) -> dict[str, Any]:
    """Train, measure and keep the version; a run that was stopped goes on where it was.

    Returns:
        The version: id, time, concept, model, guard (folder), fingerprint, replaces, reports, before, after. `before` and `after`
        are None where nothing measures this concept: then it is not measured.
    """
    from saferedir.pipelines.loading import load_pipeline

    if not (plan.out / "guard_config.json").exists():
        pipe = load_pipeline(plan.model.source or plan.model.name, dtype=plan.model.dtype)
        pipe.set_progress_bar_config(disable=True)
        train_saferedir(pipe, list(plan.pairs), plan.out, concept=plan.concept, config=plan.config, progress=progress)
    cells = measure(plan, progress)
    return store.add_version(
        {
            "concept": plan.concept,
            "model": plan.model.name,
            "guard": str(plan.out),
            "fingerprint": guard_fingerprint(Guard.from_pretrained(str(plan.out))),
            "replaces": plan.guard,
            "replaced_fingerprint": guard_fingerprint(Guard.from_pretrained(plan.guard)),
            "reports": [report.id for report in plan.reports],
            "pairs": len(plan.pairs),
            "before": cells.get("before"),
            "after": cells.get("after"),
        }
    )


def measure(plan: Plan, progress: Progress = SILENT) -> dict[str, dict[str, Any]]:
    """{"before", "after"}: the bench's cells of both guards on the same prompts; {} where the bench has none for the concept."""
    from saferedir.pictoworld.tasks import TASKS

    if (plan.model.source or plan.model.name) != "pictoworld" or plan.concept not in TASKS:
        return {}
    from saferedir.bench.bench import Bench
    from saferedir.bench.planning.matrix import Matrix

    with Bench(
        Matrix.model_validate(_matrix(plan)), plan.out.with_name(f"{plan.out.name}.bench"), progress=progress
    ) as bench:
        records = bench.run()
        bench.check_complete(records)
        bench.report()
    cells: dict[str, dict[str, Any]] = {}
    for record in records:
        if record.name.guard in ("before", "after"):
            key = "concept" if record.name.role == "forget" else "retention"
            cells.setdefault(record.name.guard, {})[f"{record.name.prompts}: {key}"] = record.measured.get(key)
    return cells


def _matrix(plan: Plan) -> Mapping[str, Any]:
    concept, judges = plan.concept, ("pictoworld", "pictoworld-template")
    first, second = ({"name": name, "preset": concept} for name in judges)
    return {
        "title": f"{concept}, before and after {len(plan.reports)} reports",
        "attacks": ["none"],
        "prompts": {"forget": plan.n, "rephrased": plan.n, "retain": plan.n},
        "model": {
            plan.model.name: {
                "load": plan.model.source or plan.model.name,
                "batch": min(plan.n, 14),
                "call": {"num_inference_steps": plan.model.steps, "guidance_scale": plan.model.guidance},
            }
        },
        "concept": {concept: {"prompts": f"pictoworld/{concept}", "judge": first, "second_judges": [second]}},
        "guard": {"before": {"load": plan.guard}, "after": {"load": str(plan.out)}},
    }
