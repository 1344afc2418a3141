"""From matrix to work: every cell, and the sets of images it needs, each only once. Everything that can be wrong is found here.

What is checked is in plan_checks.py and concepts.py. Generates nothing; loads models and guards to know their checksums.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saferedir.attacks.base import Attack
from saferedir.attacks.registry import ATTACKS
from saferedir.bench.generation.generate import GenerationSpec
from saferedir.bench.generation.resources import (
    EncoderSpec,
    GuardPart,
    JudgeSpec,
    ModelSpec,
    Resources,
    guards_digest,
)
from saferedir.bench.generation.versions import library_versions
from saferedir.bench.planning.cell_spec import CellSpec, EncoderUse, PromptFacts
from saferedir.bench.planning.concepts import Concept, read_concept
from saferedir.bench.planning.config import Matrix, ModelEntry
from saferedir.bench.planning.encoders import MatrixEncoder, checksums_of, encoders_of, uses_of
from saferedir.bench.planning.guards import guard_parts
from saferedir.bench.planning.plan_checks import check_attacks, check_call, check_names, check_text, check_without
from saferedir.bench.planning.prompt_warnings import PromptWarnings
from saferedir.bench.records import BARE, CellName, Protocol
from saferedir.errors import BenchError, GuardNotFoundError
from saferedir.prompts.sets import ConceptPrompts, PromptSet

#: images a shard, about: what a kill may cost at most
SHARD = 64
_SEED_STRIDE = 1_000_003  # a prime: seeds of different repetitions do not meet for sets of any usual size


@dataclass(frozen=True)
class Plan:
    """All the work of a matrix.

    Attributes:
        cells: in the order of the report.
        image_sets: every different one by its key, bare models first, though several cells may need it.
        prompts: key -> what is kept of a prompt set.
        missing: a sentence for each (guard, concept) that cannot be had.
        shared: images that are asked for, but generated once for several cells.
        encoders: of the matrix, by name.
        texts: digest of a prompt set -> its texts, for encoders that read texts. Private: never kept.
    """

    matrix: Matrix
    cells: tuple[CellSpec, ...]
    image_sets: Mapping[str, GenerationSpec]
    prompts: Mapping[str, PromptFacts]
    missing: tuple[str, ...]
    shared: int
    encoders: Mapping[str, MatrixEncoder]
    texts: Mapping[str, Sequence[str]] = field(repr=False)

    @property
    def n_images(self) -> int:
        """Images to generate in all."""
        return sum(map(len, self.image_sets.values()))


def make_plan(matrix: Matrix, resources: Resources, on_step: Callable[[str], None] = lambda text: None) -> Plan:
    """Check everything, load every model and guard once, and list the work.

    Raises BenchError (or the loader's own error) with one sentence at the first thing that is wrong.
    """
    check_names(matrix)
    concepts = [read_concept(name, entry, matrix, resources) for name, entry in matrix.concept.items()]
    untried = check_attacks(matrix, concepts)
    builder = _Builder(matrix, resources)
    builder.missing += untried
    check_without(matrix, concepts, builder.encoders)
    for model_name, model_entry in matrix.model.items():
        on_step(f"loading {model_name}")
        model = _model(model_entry, resources)
        for concept in concepts:
            for guard in (BARE, *matrix.guard):
                on_step(f"{model_name}, {concept.name}: {guard}")
                builder.add(model_name, model, concept, guard)
    had = {cell.name.guard for cell in builder.cells}
    for guard, sentence in builder.unknown.items():
        if guard not in had:  # one that some other concept has is a method without this concept
            raise BenchError(f"[guard.{guard}] {sentence}")
    if not builder.cells:
        raise BenchError(f"{matrix.title!r} has no cell: no guard or attack applies to any of its concepts.")
    return builder.plan()


class _Builder:
    """Collects the cells of a matrix, and each set of images once."""

    def __init__(self, matrix: Matrix, resources: Resources) -> None:
        self.matrix, self.resources, self.versions = matrix, resources, library_versions()
        self.cells: list[CellSpec] = []
        self.bare: dict[str, GenerationSpec] = {}
        self.guarded: dict[str, GenerationSpec] = {}
        self.prompts: dict[str, PromptFacts] = {}
        self.missing: list[str] = []
        self.unknown: dict[str, str] = {}  # guard -> why it was not found, for the first concept without it
        self.prompt_warnings = PromptWarnings(matrix)
        self.encoders = encoders_of(matrix.encoder, resources)
        self.texts: dict[str, Sequence[str]] = {}
        self.asked = 0

    def add(self, model_name: str, model: ModelSpec, concept: Concept, guard: str) -> None:
        """All cells of one guard and concept."""
        parts = guard_parts(guard, self.matrix, concept.name, concept.entry)
        if parts is None:
            return
        try:
            guards = self.resources.guards(model, parts)
        except GuardNotFoundError as error:
            self.missing.append(f"{guard} for {concept.name}: {error}")
            if any("load" in part.source for part in parts):
                self.unknown.setdefault(guard, str(error))
            return
        facts = (
            {"digest": guards_digest(guards), "method": " + ".join(part_guard.method for part_guard in guards)}
            if guards
            else {}
        )
        pipe = self.resources.pipeline(model)
        check_text(guards, model.call, pipe)
        precision = self.resources.precision_name(model, pipe)
        for role, attack, chosen in _sets(self.matrix, concept.prompts):
            without = concept.without if chosen is concept.prompts.forget else None
            uses = uses_of(self.encoders, role, chosen, without)
            if any(use.texts for use in uses.values()):
                self.texts |= {each.digest: each.texts for each in (chosen, without) if each is not None}
            scorers = concept.judges, tuple(dict.fromkeys(self.encoders[name].spec for name in uses))
            guarded = self._generation_specs(model, parts, facts.get("digest", ""), chosen, *scorers)
            bare = self._generation_specs(model, (), "", chosen, *scorers)
            plain = self._generation_specs(model, (), "", without, *scorers) if without is not None else []
            self.asked += sum(map(len, guarded + plain))
            self.cells.append(
                CellSpec(
                    name=CellName(
                        model_name, guard, concept.name, role, attack.name, chosen.name, tuple(self.matrix.seeds)
                    ),
                    protocol=self._protocol(model, concept, attack, chosen, precision, uses),
                    threat={"knowledge": attack.knowledge, "channel": attack.channel, "rung": attack.rung},
                    guard=facts,
                    versions=self.versions,
                    image_sets=tuple(spec.key for spec in guarded),
                    bare=tuple(spec.key for spec in bare),
                    prompts=self._facts(concept, chosen, without, guard, pipe),
                    judge=concept.judges[0].key,
                    second=concept.second,
                    encoders=uses,
                    without=tuple(spec.key for spec in plain),
                )
            )

    def _protocol(
        self,
        model: ModelSpec,
        concept: Concept,
        attack: Attack[Any],
        chosen: PromptSet,
        precision: str,
        uses: Mapping[str, EncoderUse],
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
            images_per_prompt=self.matrix.images_per_prompt,
            encoders=checksums_of(self.encoders, uses),
        )

    def _generation_specs(
        self,
        model: ModelSpec,
        parts: tuple[GuardPart, ...],
        digest: str,
        chosen: PromptSet,
        judges: tuple[JudgeSpec, ...],
        encoders: tuple[EncoderSpec, ...],
    ) -> list[GenerationSpec]:
        """One a seed."""
        plain = GenerationSpec(
            model=model,
            guards=parts,
            guards_digest=digest,
            texts=(),
            seeds=(),
            prompt_of=(),
            judges=judges,
            shard_size=model.batch * max(1, round(SHARD / model.batch)),
            keep_images=self.matrix.keep_images,
            versions=self.versions,
            precision=self.resources.arithmetic(model, self.resources.pipeline(model)),
            encoders=encoders,
        )
        return [self._generation_spec(plain, chosen, seed) for seed in self.matrix.seeds]

    def _generation_spec(self, plain: GenerationSpec, chosen: PromptSet, seed: int) -> GenerationSpec:
        repeats = self.matrix.images_per_prompt
        rows = [(index, item, repeat) for index, item in enumerate(chosen.items) for repeat in range(repeats)]
        spec = dataclasses.replace(
            plain,
            texts=tuple(item.text for _, item, _ in rows),
            seeds=tuple(
                (index if item.seed is None else item.seed) + _SEED_STRIDE * (seed * repeats + repeat)
                for index, item, repeat in rows
            ),
            prompt_of=tuple(index for index, _, _ in rows),
        )
        known = self.guarded if spec.guards else self.bare
        if spec.key in known:  # for several concepts: every judge and encoder of any of them scores it
            other = known[spec.key]
            spec = dataclasses.replace(
                spec,
                judges=tuple(dict.fromkeys([*other.judges, *spec.judges])),
                encoders=tuple(dict.fromkeys([*other.encoders, *spec.encoders])),
            )
        known[spec.key] = spec
        return spec

    def _facts(self, concept: Concept, chosen: PromptSet, without: PromptSet | None, guard: str, pipe: Any) -> str:
        """Keep what a reader may see of a prompt set; its texts only if they are our own."""
        warnings = (*chosen.warnings, *self.prompt_warnings.of(concept.name, chosen, guard, pipe))
        if without is not None:
            further = (*without.warnings, *self.prompt_warnings.of(concept.name, without, BARE, pipe))
            warnings += tuple(f"prompts in `without`: {sentence}" for sentence in further)
        warnings_digest = hashlib.sha256("\n".join(warnings).encode()).hexdigest()[:8]
        key = f"{concept.name} {chosen.name} {chosen.digest} {warnings_digest}"
        self.prompts[key] = PromptFacts(
            name=chosen.name,
            expected=tuple(dict(item.expected) for item in chosen.items),
            sha256=tuple(item.sha256 for item in chosen.items),
            texts=None if concept.entry.prompts is None else tuple(chosen.texts),
            warnings=warnings,
        )
        return key

    def plan(self) -> Plan:
        """What was collected; BenchError where two cells would share a file."""
        twice = [slug for slug, count in Counter(cell.name.slug for cell in self.cells).items() if count > 1]
        if twice:
            raise BenchError(
                f"two cells would be kept as {twice[0]}.json; give models, guards and concepts plainer names."
            )
        image_sets = {**self.bare, **self.guarded}
        shared = self.asked - sum(map(len, image_sets.values()))
        return Plan(
            matrix=self.matrix,
            cells=tuple(self.cells),
            image_sets=image_sets,
            prompts=self.prompts,
            missing=tuple(self.missing),
            shared=shared,
            encoders=self.encoders,
            texts=self.texts,
        )


def _model(entry: ModelEntry, resources: Resources) -> ModelSpec:
    plain = ModelSpec(
        entry.load,
        entry.batch,
        entry.dtype,
        entry.device,
        entry.fast,
        dict(entry.call),
        variant=entry.variant,
        revision=entry.revision,
        config=entry.config,
        loras=tuple((lora.load, lora.scale) for lora in entry.loras),
    )
    check_call(entry.call, resources.pipeline(plain))
    return dataclasses.replace(plain, digest=resources.model_digest(plain))


def _sets(matrix: Matrix, prompts: ConceptPrompts) -> list[tuple[str, Attack[Any], PromptSet]]:
    """(role, attack, prompts) of every cell of one guard and concept."""
    attacks = [ATTACKS[name]() for name in matrix.attacks]
    out = [("forget", attack, chosen) for attack in attacks for chosen in attack.prompts(prompts).values()]
    none = ATTACKS["none"]()
    out += [("retain", none, prompts.retain)] if prompts.retain is not None else []
    out += [("neighbours", none, chosen) for chosen in prompts.neighbours.values()]
    out += [("look-alikes", none, prompts.look_alikes)] if prompts.look_alikes is not None else []
    return out
