"""A concept of the matrix, read and checked: its prompts, judges and rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saferedir.bench.generation.resources import JudgeSpec, Resources
from saferedir.bench.generation.worlds import world_prompts
from saferedir.bench.planning.config import ConceptEntry, FileEntry, Matrix
from saferedir.bench.planning.judges import judge_spec, rule_of
from saferedir.errors import BenchError
from saferedir.judges.rules import Rule
from saferedir.prompts import read_prompts
from saferedir.prompts.sets import ConceptPrompts, PromptSet


@dataclass(frozen=True)
class Concept:
    """A concept of the matrix.

    Attributes:
        without: the forget prompts with the concept taken out, prompt i with the seed of forget prompt i, or None.
        second: "<judge>/<preset>" of further judges -> as in `CellSpec`.
        judges: all who score its images, the protocol's first.
    """

    name: str
    entry: ConceptEntry
    prompts: ConceptPrompts
    without: PromptSet | None
    rule: Rule
    second: Mapping[str, dict[str, Any]]
    judges: tuple[JudgeSpec, ...]


def read_concept(name: str, entry: ConceptEntry, matrix: Matrix, resources: Resources) -> Concept:
    """Read the prompts and load the judges; one sentence for what is wrong."""
    judges = tuple(judge_spec(judge, resources) for judge in (entry.judge, *entry.second_judges))
    prompts = _prompts(entry, matrix)
    return Concept(
        name=name,
        entry=entry,
        prompts=prompts,
        without=None if entry.without is None else _without(name, entry, entry.without, prompts.forget),
        rule=rule_of(entry.judge),
        second=_second(name, entry, judges[1:]),
        judges=judges,
    )


def _second(concept: str, entry: ConceptEntry, specs: Sequence[JudgeSpec]) -> dict[str, dict[str, Any]]:
    """Further judges by "<judge>/<preset>", which must tell them apart."""
    by_label: dict[str, dict[str, Any]] = {}
    for judge, spec in zip(entry.second_judges, specs, strict=True):
        label = f"{judge.name}/{judge.preset or 'own rule'}"
        if label in by_label:
            raise BenchError(f"[concept.{concept}] has two second judges called {label!r}; give each its own preset.")
        by_label[label] = {"judge": spec.key, "rule": rule_of(judge).to_dict()}
    return by_label


def _prompts(entry: ConceptEntry, matrix: Matrix) -> ConceptPrompts:
    limits = matrix.prompts.model_dump()
    if entry.prompts is not None:
        return world_prompts(entry.prompts, limits)

    def read(file: FileEntry | None, kind: str, set_name: str) -> PromptSet | None:
        if file is None:
            return None
        chosen, limit = _read(file, set_name), limits[kind]
        if limit is None or len(chosen) <= limit:
            return chosen
        return PromptSet(chosen.name, chosen.items[:limit], f"{chosen.protocol} first {limit}", chosen.warnings)

    forget = read(entry.forget, "forget", "forget")
    assert forget is not None  # config.py insists on it
    many = {
        kind: {key: read(file, kind, key) for key, file in getattr(entry, kind).items()}
        for kind in ("rephrased", "neighbours")
    }
    return ConceptPrompts(
        forget=forget,
        rephrased={key: prompts for key, prompts in many["rephrased"].items() if prompts is not None},
        retain=read(entry.retain, "retain", "retain"),
        neighbours={key: prompts for key, prompts in many["neighbours"].items() if prompts is not None},
        look_alikes=read(entry.look_alikes, "look_alikes", "look-alikes"),
    )


def _read(file: FileEntry, name: str) -> PromptSet:
    return read_prompts(file.file, file.format, rows=file.rows, name=name, allow_duplicates=file.allow_duplicates)


def _without(concept: str, entry: ConceptEntry, file: FileEntry, forget: PromptSet) -> PromptSet:
    """The prompts without the concept, as many of them as forget prompts are used, each with its partner's seed.

    Two of them may well be alike, so duplicates are neither merged nor refused: row i belongs to row i.
    """
    prompts = _read(file.model_copy(update={"allow_duplicates": True}), "without")
    assert entry.forget is not None  # config_checks.py insists on it
    whole = len(_read(entry.forget, "forget"))
    if len(prompts) != whole:
        raise BenchError(
            f"[concept.{concept}] has {len(prompts)} prompts in `without` and {whole} in `forget`, expected the same prompts row "
            "by row with the concept taken out."
        )
    pairs = list(zip(prompts.items, forget.items, strict=False))  # as far as the limit allows
    if all(item.text == partner.text for item, partner in pairs):
        raise BenchError(
            f"[concept.{concept}] has the same prompts in `without` as in `forget`; give those with the concept taken out."
        )
    items = tuple(dataclasses.replace(item, seed=partner.seed) for item, partner in pairs)
    return PromptSet("without", items, prompts.protocol, prompts.warnings)
