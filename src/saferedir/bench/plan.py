"""From matrix to work: every cell, and the drawings it needs, each only once. Everything that can be wrong is found here.

Imports config, drawing, resources, attacks, judges, prompt files and worlds. Draws nothing; loads models and guards to know their
checksums.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from saferedir.attacks.base import Attack
from saferedir.attacks.registry import ATTACKS
from saferedir.bench.cells import CellSpec, PromptFacts
from saferedir.bench.config import ConceptEntry, FileEntry, GuardEntry, Matrix, ModelEntry
from saferedir.bench.drawing import DrawingSpec
from saferedir.bench.judging import judge_spec, rule_of
from saferedir.bench.prompt_files import (
    overlap_warnings,
    read_prompts,
    subset_warnings,
    text_checksums,
    token_warnings,
)
from saferedir.bench.records import BARE, CellName, Protocol
from saferedir.bench.resources import (
    GuardPart,
    JudgeSpec,
    ModelSpec,
    Resources,
    guards_digest,
)
from saferedir.bench.worlds import check_recipe, world_prompts
from saferedir.errors import BenchError, GuardNotFoundError
from saferedir.guards.registry import methods
from saferedir.judges.registry import judge_names
from saferedir.judges.rules import Rule
from saferedir.names import unknown
from saferedir.packaged import library_version
from saferedir.prompts import ConceptPrompts, PromptSet

#: pictures a shard, about: what a kill may cost at most
SHARD = 64
#: arguments of the pipeline call that are not the matrix's to set
_OURS = {"prompt", "generator", "output_type", "return_dict", "num_images_per_prompt", "latents", "prompt_embeds"}
_SEED_STRIDE = 1_000_003  # a prime: seeds of different repetitions do not meet for sets of any usual size


@dataclass(frozen=True)
class Plan:
    """All the work of a matrix.

    Attributes:
        cells: in the order of the report.
        drawings: every different one by its key, bare models first, though several cells may need it.
        prompts: key -> what is kept of a prompt set.
        missing: a sentence for each (guard, concept) that cannot be had.
        shared: pictures that are asked for, but drawn once for several cells.
    """

    matrix: Matrix
    cells: tuple[CellSpec, ...]
    drawings: Mapping[str, DrawingSpec]
    prompts: Mapping[str, PromptFacts]
    missing: tuple[str, ...]
    shared: int

    @property
    def pictures(self) -> int:
        """Pictures to draw in all."""
        return sum(map(len, self.drawings.values()))


@dataclass(frozen=True)
class _Concept:
    """A concept of the matrix, read and checked."""

    name: str
    entry: ConceptEntry
    prompts: ConceptPrompts
    rule: Rule
    second: Mapping[str, dict[str, Any]]
    judges: tuple[JudgeSpec, ...]


def make_plan(matrix: Matrix, resources: Resources, on_step: Callable[[str], None] = lambda text: None) -> Plan:
    """Check everything, load every model and guard once, and list the work.

    Raises BenchError (or the loader's own error) with one sentence at the first thing that is wrong.
    """
    _check_names(matrix)
    concepts = [_concept(name, entry, matrix, resources) for name, entry in matrix.concept.items()]
    builder = _Builder(matrix, resources)
    for model_name, model_entry in matrix.model.items():
        on_step(f"loading {model_name}")
        model = _model(model_entry, resources)
        for concept in concepts:
            for guard in (BARE, *matrix.guard):
                on_step(f"{model_name}, {concept.name}: {guard}")
                builder.add(model_name, model, concept, guard)
    if not builder.cells:
        raise BenchError(f"{matrix.title!r} has no cell: no guard or attack applies to any of its concepts.")
    return builder.plan()


class _Builder:
    """Collects the cells of a matrix, and each drawing once."""

    def __init__(self, matrix: Matrix, resources: Resources) -> None:
        self.matrix, self.resources, self.versions = matrix, resources, library_versions()
        self.cells: list[CellSpec] = []
        self.bare: dict[str, DrawingSpec] = {}
        self.guarded: dict[str, DrawingSpec] = {}
        self.prompts: dict[str, PromptFacts] = {}
        self.missing: list[str] = []
        self.trained_on: dict[str, frozenset[str]] = {}  # file -> checksums of its texts
        self.asked = 0

    def add(self, model_name: str, model: ModelSpec, concept: _Concept, guard: str) -> None:
        """All cells of one guard and concept."""
        parts = _parts(guard, self.matrix, concept)
        if parts is None:
            return
        try:
            guards = self.resources.guards(model, parts)
        except GuardNotFoundError as error:
            self.missing.append(f"{guard} for {concept.name}: {error}")
            return
        facts = {"digest": guards_digest(guards), "method": " + ".join(one.method for one in guards)} if guards else {}
        pipe = self.resources.pipeline(model)
        precision = self.resources.precision_name(model, pipe)
        for role, attack, chosen in _sets(self.matrix, concept.prompts):
            own, bare = (
                [self._drawing(model, part, digest, concept, chosen, seed) for seed in self.matrix.seeds]
                for part, digest in ((parts, facts.get("digest", "")), ((), ""))
            )
            self.asked += sum(map(len, own))
            self.cells.append(
                CellSpec(
                    name=CellName(
                        model_name, guard, concept.name, role, attack.name, chosen.name, tuple(self.matrix.seeds)
                    ),
                    protocol=self._protocol(model, concept, attack, chosen, precision),
                    threat={"knowledge": attack.knowledge, "channel": attack.channel, "rung": attack.rung},
                    guard=facts,
                    versions=self.versions,
                    drawings=tuple(spec.key for spec in own),
                    bare=tuple(spec.key for spec in bare),
                    prompts=self._facts(concept, chosen, guard, pipe),
                    judge=concept.judges[0].key,
                    second=concept.second,
                )
            )

    def _protocol(
        self, model: ModelSpec, concept: _Concept, attack: Attack, chosen: PromptSet, precision: str
    ) -> Protocol:
        judge = concept.entry.judge
        return Protocol(
            prompts=f"{chosen.protocol} {chosen.digest}",
            n=len(chosen),
            judge=judge.name,
            judge_digest=concept.judges[0].digest,
            preset=judge.preset or "own rule",
            rule=concept.rule.to_dict(),
            attack=attack.name,
            call=dict(model.call),
            precision=precision,
            model=model.digest,
            seeds=tuple(self.matrix.seeds),
            draws=self.matrix.draws,
        )

    def _drawing(
        self,
        model: ModelSpec,
        parts: tuple[GuardPart, ...],
        digest: str,
        concept: _Concept,
        chosen: PromptSet,
        seed: int,
    ) -> DrawingSpec:
        draws = self.matrix.draws
        rows = [(place, item, draw) for place, item in enumerate(chosen.items) for draw in range(draws)]
        spec = DrawingSpec(
            model=model,
            guards=parts,
            guards_digest=digest,
            texts=tuple(item.text for _, item, _ in rows),
            seeds=tuple(
                (place if item.seed is None else item.seed) + _SEED_STRIDE * (seed * draws + draw)
                for place, item, draw in rows
            ),
            prompt_of=tuple(place for place, _, _ in rows),
            judges=concept.judges,
            shard_size=model.batch * max(1, round(SHARD / model.batch)),
            keep_images=self.matrix.keep_images,
            versions=self.versions,
            precision=self.resources.arithmetic(model, self.resources.pipeline(model)),
        )
        known = self.guarded if parts else self.bare
        if spec.key in known:  # for several concepts: every judge of any of them looks at it
            judges = tuple(dict.fromkeys([*known[spec.key].judges, *spec.judges]))
            spec = dataclasses.replace(spec, judges=judges)
        known[spec.key] = spec
        return spec

    def _facts(self, concept: _Concept, chosen: PromptSet, guard: str, pipe: Any) -> str:
        """Keep what a reader may see of a prompt set; its texts only if they are our own."""
        warnings = (*chosen.warnings, *_cautions(chosen, guard, pipe), *self._overlaps(concept.name, chosen, guard))
        said = hashlib.sha256("\n".join(warnings).encode()).hexdigest()[:8]
        key = f"{concept.name} {chosen.name} {chosen.digest} {said}"
        self.prompts[key] = PromptFacts(
            name=chosen.name,
            expected=tuple(dict(item.expected) for item in chosen.items),
            sha256=tuple(item.sha256 for item in chosen.items),
            texts=None if concept.entry.prompts is None else tuple(chosen.texts),
            warnings=warnings,
        )
        return key

    def _overlaps(self, concept: str, chosen: PromptSet, guard: str) -> tuple[str, ...]:
        """Warning W9: prompts that the guard, or a part of its stack, was made from."""
        entry = self.matrix.guard.get(guard)
        found: list[str] = []
        for part in [] if entry is None else [entry, *(self.matrix.guard[name] for name in entry.stack or [])]:
            for file in part.trained_on:
                path = file.replace("{concept}", concept)
                if path not in self.trained_on:
                    self.trained_on[path] = text_checksums(path)
                found += overlap_warnings(chosen, self.trained_on[path], f"{Path(path).name}, which {guard} was made from")
        return tuple(found)

    def plan(self) -> Plan:
        """What was collected; BenchError where two cells would share a file."""
        twice = [slug for slug, count in Counter(cell.name.slug for cell in self.cells).items() if count > 1]
        if twice:
            raise BenchError(
                f"two cells would be kept as {twice[0]}.json; give models, guards and concepts plainer names."
            )
        drawings = {**self.bare, **self.guarded}
        shared = self.asked - sum(map(len, drawings.values()))
        return Plan(self.matrix, tuple(self.cells), drawings, self.prompts, tuple(self.missing), shared)


def library_versions() -> dict[str, str]:
    """The libraries that the pictures depend on."""
    found = {"saferedir": library_version()}
    for name in ("torch", "diffusers", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _check_names(matrix: Matrix) -> None:
    """Names that other rooms know, before anything is loaded."""
    for attack in matrix.attacks:
        if attack not in ATTACKS:
            raise BenchError(unknown("attack", attack, ATTACKS))
    for entry in matrix.guard.values():
        if entry.method is not None and entry.method not in methods():
            raise BenchError(unknown("guard method", entry.method, methods()))
        if entry.recipe is not None:
            check_recipe(entry.recipe)
    for concept in matrix.concept.values():
        for judge in (concept.judge, *concept.second_judges):
            if judge.name not in judge_names():
                raise BenchError(unknown("judge", judge.name, judge_names()))


def _second(concept: str, entry: ConceptEntry, specs: Sequence[JudgeSpec]) -> dict[str, dict[str, Any]]:
    """Further judges by "<judge>/<preset>", which must tell them apart."""
    found: dict[str, dict[str, Any]] = {}
    for judge, spec in zip(entry.second_judges, specs, strict=True):
        label = f"{judge.name}/{judge.preset or 'own rule'}"
        if label in found:
            raise BenchError(f"[concept.{concept}] has two second judges called {label!r}; give each its own preset.")
        found[label] = {"judge": spec.key, "rule": rule_of(judge).to_dict()}
    return found


def _concept_prompts(entry: ConceptEntry, matrix: Matrix) -> ConceptPrompts:
    limits = matrix.prompts.model_dump()
    if entry.prompts is not None:
        return world_prompts(entry.prompts, limits)

    def read(file: FileEntry | None, kind: str, set_name: str) -> PromptSet | None:
        if file is None:
            return None
        found = read_prompts(
            file.file, file.format, rows=file.rows, name=set_name, allow_duplicates=file.allow_duplicates
        )
        limit = limits[kind]
        if limit is None or len(found) <= limit:
            return found
        return PromptSet(found.name, found.items[:limit], f"{found.protocol} first {limit}", found.warnings)

    forget = read(entry.forget, "forget", "forget")
    assert forget is not None  # config.py insists on it
    many = {
        kind: {key: read(file, kind, key) for key, file in getattr(entry, kind).items()}
        for kind in ("rephrased", "neighbours")
    }
    return ConceptPrompts(
        forget=forget,
        rephrased={key: found for key, found in many["rephrased"].items() if found is not None},
        retain=read(entry.retain, "retain", "retain"),
        neighbours={key: found for key, found in many["neighbours"].items() if found is not None},
        look_alikes=read(entry.look_alikes, "look_alikes", "look-alikes"),
    )


def _concept(name: str, entry: ConceptEntry, matrix: Matrix, resources: Resources) -> _Concept:
    judges = tuple(judge_spec(judge, resources) for judge in (entry.judge, *entry.second_judges))
    return _Concept(
        name=name,
        entry=entry,
        prompts=_concept_prompts(entry, matrix),
        rule=rule_of(entry.judge),
        second=_second(name, entry, judges[1:]),
        judges=judges,
    )


def _model(entry: ModelEntry, resources: Resources) -> ModelSpec:
    plain = ModelSpec(entry.load, entry.batch, entry.dtype, entry.device, entry.fast, dict(entry.call))
    _check_call(entry, resources.pipeline(plain))
    return dataclasses.replace(plain, digest=resources.model_digest(plain))


def _check_call(entry: ModelEntry, pipe: Any) -> None:
    """Pipelines with **kwargs swallow a misspelt argument, and draw with their defaults."""
    known = set(inspect.signature(type(pipe).__call__).parameters) - {"self", "args", "kwargs"}
    for name in entry.call:
        if name in _OURS:
            raise BenchError(f"`call` sets {name!r}, which the bench sets itself; leave it out.")
        if name not in known:
            raise BenchError(unknown(f"argument of {type(pipe).__name__}", name, known - _OURS))


def _parts(name: str, matrix: Matrix, concept: _Concept) -> tuple[GuardPart, ...] | None:
    """A guard's parts for a concept; None if the matrix leaves it out for this one."""
    if name == BARE:
        return ()
    guard = matrix.guard[name]
    if guard.concepts is not None and concept.name not in guard.concepts:
        return None
    if guard.stack is None:
        return (GuardPart(_source(guard, concept.name, concept.entry)),)
    parts = [_parts(part, matrix, concept) for part in guard.stack]
    return None if None in parts else tuple(part for found in parts for part in found or ())


def _source(guard: GuardEntry, concept: str, entry: ConceptEntry) -> dict[str, Any]:
    if guard.load is not None:
        return {"load": guard.load.replace("{concept}", concept), "force": guard.force}
    if guard.recipe is not None:
        if entry.prompts is None:
            raise BenchError(
                f"recipe {guard.recipe!r} is for built-in concepts; give {concept!r} a guard by `method` or `load`."
            )
        return {"recipe": guard.recipe, "concept": entry.prompts}
    return {"method": guard.method, "config": {"concept": concept, **guard.config}}


def _cautions(chosen: PromptSet, guard: str, pipe: Any) -> tuple[str, ...]:
    """Warnings W7 and W8, which need the model's tokenizer and the guard's name."""
    tokenizer = getattr(pipe, "tokenizer", None)
    found = subset_warnings(chosen, guard) if guard != BARE else ()
    if tokenizer is None:
        return found
    return (
        *found,
        *token_warnings(chosen, lambda text: len(tokenizer(text, truncation=False, verbose=False).input_ids)),
    )


def _sets(matrix: Matrix, prompts: ConceptPrompts) -> list[tuple[str, Attack, PromptSet]]:
    """(role, attack, prompts) of every cell of one guard and concept."""
    attacks = [ATTACKS[name]() for name in matrix.attacks]
    out = [("forget", attack, chosen) for attack in attacks for chosen in attack.prompts(prompts).values()]
    none = ATTACKS["none"]()
    out += [("retain", none, prompts.retain)] if prompts.retain is not None else []
    out += [("neighbours", none, chosen) for chosen in prompts.neighbours.values()]
    out += [("look-alikes", none, prompts.look_alikes)] if prompts.look_alikes is not None else []
    return out
