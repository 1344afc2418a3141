"""A plan as it lies on the disk (plan.json): all that is needed to count, report and judge again, without model or guard.

Plain data. Made by runner.py, read by report/from_folder.py and evaluation/rejudge.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saferedir.bench.generation.generate import Shard
from saferedir.bench.generation.resources import EncoderSpec, JudgeSpec, Scorer
from saferedir.bench.planning.cell_spec import CellSpec, PromptFacts
from saferedir.bench.planning.plan import Plan
from saferedir.bench.schema import SCHEMA, read_plan
from saferedir.bench.storage.store import read_json
from saferedir.errors import BenchError


@dataclass(frozen=True)
class SavedPlan:
    """What a bench folder is about.

    Attributes:
        cells, prompts, missing: as in `Plan`.
        shards: set of images -> its shards.
        judges, encoders: set of images -> who scored it.
        images_at: where the sets of images lie, from the folder of plan.json: "." but for a folder of counts made anew.
    """

    title: str
    description: str
    cells: tuple[CellSpec, ...]
    prompts: Mapping[str, PromptFacts]
    shards: Mapping[str, tuple[Shard, ...]]
    judges: Mapping[str, tuple[JudgeSpec, ...]]
    missing: tuple[str, ...]
    images_at: str = "."
    encoders: Mapping[str, tuple[EncoderSpec, ...]] = field(default_factory=dict)

    @property
    def scorers(self) -> dict[str, tuple[Scorer, ...]]:
        """ImageSet -> judges and encoders that scored it."""
        return {key: (*judges, *self.encoders.get(key, ())) for key, judges in self.judges.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        rest = dataclasses.asdict(self)
        shards = {key: [[shard.start, shard.stop] for shard in of_set] for key, of_set in self.shards.items()}
        return {"schema": SCHEMA, **rest, "shards": shards}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SavedPlan:
        """Inverse of `to_dict`, also for schema 1; BenchError for a missing field. What earlier releases did not write has its
        default.
        """
        values = read_plan(values)
        try:
            return cls(
                title=values["title"],
                description=values["description"],
                cells=tuple(CellSpec.from_dict(cell) for cell in values["cells"]),
                prompts={key: _prompt_facts(facts) for key, facts in values["prompts"].items()},
                shards={key: tuple(Shard(key, *ends) for ends in of_set) for key, of_set in values["shards"].items()},
                judges={key: tuple(JudgeSpec(**judge) for judge in of_set) for key, of_set in values["judges"].items()},
                missing=tuple(values["missing"]),
                images_at=values.get("images_at", "."),
                encoders={
                    key: tuple(EncoderSpec(**encoder) for encoder in of_set)
                    for key, of_set in values.get("encoders", {}).items()
                },
            )
        except (KeyError, TypeError) as error:
            raise BenchError(
                f"plan.json is incomplete or has a field too many ({error}); run the bench again."
            ) from error


def _prompt_facts(values: Mapping[str, Any]) -> PromptFacts:
    texts = values["texts"]
    return PromptFacts(
        name=values["name"],
        expected=tuple(values["expected"]),
        sha256=tuple(values["sha256"]),
        texts=None if texts is None else tuple(texts),
        warnings=tuple(values["warnings"]),
    )


def saved_plan(plan: Plan) -> SavedPlan:
    """The part of a plan that is kept."""
    return SavedPlan(
        title=plan.matrix.title,
        description=plan.matrix.description,
        cells=plan.cells,
        prompts=plan.prompts,
        shards={key: tuple(spec.shards) for key, spec in plan.image_sets.items()},
        judges={key: spec.judges for key, spec in plan.image_sets.items()},
        missing=plan.missing,
        encoders={key: spec.encoders for key, spec in plan.image_sets.items()},
    )


def read_saved_plan(folder: Path) -> SavedPlan:
    """The plan of a bench folder; one sentence if it is none."""
    if not (folder / "plan.json").is_file():
        raise BenchError(
            f"{folder} is no bench folder (it has no plan.json); give the --out of a `saferedir bench run`."
        )
    return SavedPlan.from_dict(read_json(folder / "plan.json"))
