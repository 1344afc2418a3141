"""From a guard of the matrix to the parts of its stack, each by its source as plain data."""

from __future__ import annotations

from typing import Any

from saferedir.bench.generation.resources import GuardPart
from saferedir.bench.planning.config import ConceptEntry, GuardEntry, Matrix
from saferedir.bench.records import BARE
from saferedir.errors import BenchError


def guard_parts(name: str, matrix: Matrix, concept: str, entry: ConceptEntry) -> tuple[GuardPart, ...] | None:
    """A guard's parts for a concept, () for the bare model; None if the matrix leaves it out for this one."""
    if name == BARE:
        return ()
    guard = matrix.guard[name]
    if guard.concepts is not None and concept not in guard.concepts:
        return None
    if guard.stack is None:
        return (GuardPart(_source(guard, concept, entry)),)
    parts = [guard_parts(part, matrix, concept, entry) for part in guard.stack]
    return None if None in parts else tuple(part for several in parts for part in several or ())


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
