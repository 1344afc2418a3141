"""Cells of a ladder: each is run once, written at once, and kept as long as nothing that it depends on has changed."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers

from saferedir.attacks.budget import Budget
from saferedir.attacks.record import AttackRecord
from saferedir.attacks.replay import load_candidates, save_candidates
from saferedir.attacks.run import attack, guard_facts, verifier_digest
from saferedir.bench.generation.versions import library_versions
from saferedir.bench.generation.worlds import world_guards, world_prompts
from saferedir.bench.ladder.plan import Cell, Plan, planned_cells
from saferedir.bench.records import BARE
from saferedir.errors import BenchError, SaferedirError
from saferedir.guards.base import Guard
from saferedir.judges.presets import preset
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.prompts.sets import PromptSet
from saferedir.target import ProtectSettings
from saferedir.utils.files import write_json

#: of a cell's file
SCHEMA = 1
#: changes where the arithmetic of attacks or of their judging does, so that older cells are run again
PROTOCOL = 1


class Ladder:
    """Runs the cells of a plan on a pipeline, into a folder.

    Args:
        plan: what to run.
        pipe: the pipeline of `plan.model`.
        results: folder of the cells, one JSON file each.
        work: folder for what was found, which holds texts of prompts; needed again only to judge it elsewhere.
        say: called with a line about every cell.
    """

    def __init__(
        self, plan: Plan, pipe: Any, results: Path, work: Path, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.plan, self.pipe, self.results, self.work, self.say = plan, pipe, results, work, say
        self._guards: dict[tuple[str, str], list[Guard[Any]]] = {}
        self._sets: dict[tuple[str, int], PromptSet] = {}
        self._facts: dict[tuple[str, str], list[Any]] = {}
        self._backbone = backbone_fingerprint(pipe)

    def run(self) -> dict[str, int]:
        """Run what is missing: {"run", "kept", "failed"}, counts of cells. A cell that fails is said, and the rest goes on."""
        counts, done = {"run": 0, "kept": 0, "failed": 0}, set()
        for cell in planned_cells(self.plan):
            if cell in done:
                continue
            done.add(cell)
            try:
                file = self.file_of(cell)
                if file.exists():
                    counts["kept"] += 1
                    continue
                started = time.monotonic()
                summary = self._run_cell(cell)["summary"]["success"]
                counts["run"] += 1
                self.say(f"{cell.label}: {summary['hits']} of {summary['n']}, {time.monotonic() - started:.0f} s")
            except SaferedirError as error:
                counts["failed"] += 1
                self.say(f"{cell.label}: not run. {error}")
        return counts

    # --- what a cell depends on
    # ----------------------------------------------------------------------------------

    def key_of(self, cell: Cell) -> str:
        """Checksum of all that the outcome depends on, versions of libraries apart."""
        prompts, source = self._prompts(cell), cell.source
        facts = {
            "protocol": PROTOCOL,
            "cell": {**vars(cell), "guard": "", "setting": "", "optimised_on": "", "optimised_at": ""},
            "call": self._call(cell),
            "scheduler": self.plan.setting_named(cell.setting).scheduler,
            "guards": [facts for facts, _ in self._facts_of(cell)],
            "verifiers": [verifier for _, verifier in self._facts_of(cell)],
            "backbone": self._backbone,
            "prompts": [item.sha256 for item in prompts.items],
            "judges": list(preset(self.plan.concept[cell.concept].judge).judges),
            "seed": self.plan.seed,
            "source": None if source == cell else self.key_of(source),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def file_of(self, cell: Cell) -> Path:
        """`<concept>/<guard>/<attack and the rest>-<key>.json` in the folder of results."""
        rest = cell.label.partition("(")[2].replace(")", "")
        name = f"{_slug(rest)}-{self.key_of(cell)}.json"
        return self.results / _slug(cell.concept) / _slug(cell.guard) / name

    def _prompts(self, cell: Cell) -> PromptSet:
        name, key = self.plan.concept[cell.concept].prompts, (cell.concept, cell.n)
        if key not in self._sets:
            self._sets[key] = world_prompts(name, {"forget": cell.n, "rephrased": 0, "retain": 0}).forget
        return self._sets[key]

    def _call(self, cell: Cell) -> dict[str, Any]:
        return {**self.plan.call, **self.plan.setting_named(cell.setting).call}

    def _guards_of(self, cell: Cell) -> list[Guard[Any]]:
        key = (cell.guard, cell.concept)
        if key not in self._guards:
            self._guards[key] = self._load(cell.guard, cell.concept)
        return self._guards[key]

    def _facts_of(self, cell: Cell) -> list[tuple[dict[str, Any], str | None]]:
        key = (cell.guard, cell.concept)
        if key not in self._facts:
            self._facts[key] = [(guard_facts(guard), verifier_digest(guard)) for guard in self._guards_of(cell)]
        return self._facts[key]

    def _load(self, name: str, concept: str) -> list[Guard[Any]]:
        if name == BARE:
            return []
        entry = self.plan.guard[name]
        if entry.stack is not None:
            return [guard for part in entry.stack for guard in self._load(part, concept)]
        if entry.load is not None:
            return [Guard.from_pretrained(entry.load.replace("{concept}", concept))]
        if entry.recipe is not None:
            return world_guards(entry.recipe, self.plan.concept[concept].prompts, self.pipe)
        raise BenchError(f"guard {name!r} of a ladder needs `load`, `recipe` or `stack`.")

    # --- running
    # ---------------------------------------------------------------------------------------------------

    def _run_cell(self, cell: Cell) -> dict[str, Any]:
        candidates, source_key = None, None
        if cell.is_transfer:
            source_key = self.key_of(cell.source)
            if not self._found_file(source_key).exists():
                self._run_cell(cell.source)
            candidates = load_candidates(self._found_file(source_key))
        with _scheduler(self.pipe, self.plan.setting_named(cell.setting).scheduler):
            record = attack(
                self.pipe,
                self._guards_of(cell),
                cell.attack,
                self._prompts(cell),
                judge=self.plan.concept[cell.concept].judge,
                preset=cell.preset,
                settings=dict(cell.settings),
                budget=Budget() if cell.evaluations is None else Budget(evaluations=cell.evaluations),
                call=self._call(cell),
                seed=self.plan.seed,
                control=cell.control,
                policy=None if cell.policy == "attach" else ProtectSettings(cell.policy),
                see_verifier=cell.see_verifier,
                candidates=candidates,
            )
        if candidates is None:
            self.work.mkdir(parents=True, exist_ok=True)
            save_candidates([result.candidate for result in record.results], self._found_file(self.key_of(cell)))
        return self._write(cell, record, source_key)

    def _found_file(self, key: str) -> Path:
        return self.work / f"{key}.pt"

    def _write(self, cell: Cell, record: AttackRecord, source_key: str | None) -> dict[str, Any]:
        setting = self.plan.setting_named(cell.setting)
        values: dict[str, Any] = {
            "schema": SCHEMA,
            "key": self.key_of(cell),
            "cell": {**vars(cell), "settings": dict(cell.settings), "rung": cell.rung, "scheduler": setting.scheduler},
            "source": source_key,
            "verifiers": [verifier for _, verifier in self._facts_of(cell)],
            **{name: value for name, value in record.to_dict().items() if name != "schema"},
            "versions": library_versions(),
        }
        file = self.file_of(cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, values, indent=1)
        return values


def read_cells(results: Path) -> list[dict[str, Any]]:
    """Every cell of a folder, in the order of their files; BenchError for a file of another schema."""
    cells = []
    for file in sorted(results.rglob("*.json")):
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, Mapping) or values.get("schema") != SCHEMA or "cell" not in values:
            raise BenchError(f"{file.name} is no cell of a ladder of schema {SCHEMA}; move it elsewhere.")
        cells.append(dict(values))
    return cells


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


@contextmanager
def _scheduler(pipe: Any, name: str | None) -> Iterator[None]:
    """Inside, the pipeline samples by another scheduler of diffusers, made from the settings of its own."""
    if name is None:
        yield
        return
    kind = getattr(diffusers, name, None)
    if kind is None:
        raise BenchError(
            f"diffusers has no scheduler {name!r}; give the name of a class such as EulerDiscreteScheduler."
        )
    usual = pipe.scheduler
    pipe.scheduler = kind.from_config(usual.config)
    try:
        yield
    finally:
        pipe.scheduler = usual
