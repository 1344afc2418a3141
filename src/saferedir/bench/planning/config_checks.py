"""What pydantic cannot see in a matrix: names that must refer to each other, and sections that exclude each other.

config.py calls `check_matrix`.
"""

from __future__ import annotations

import re

from saferedir.bench.planning.matrix import Matrix
from saferedir.bench.records import JUDGE
from saferedir.errors import BenchError
from saferedir.utils.names import unknown_name_message

_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")


def check_matrix(matrix: Matrix, file: str) -> None:
    """Raise a BenchError at the first thing that is wrong in the matrix of this file."""
    if len(set(matrix.seeds)) < len(matrix.seeds):
        raise BenchError(f"{file}: seeds are {matrix.seeds}; give each only once, or nothing new is generated.")
    if len(set(matrix.attacks)) < len(matrix.attacks):
        raise BenchError(f"{file}: attacks are {', '.join(matrix.attacks)}; give each only once.")
    _check_guards(matrix, file)
    _check_concepts(matrix, file)
    for name in matrix.encoder:  # they become parts of metrics' names
        if name == JUDGE or not _PLAIN.fullmatch(name):
            raise BenchError(
                f"{file}: [encoder.{name}] must have a name of letters, digits, '-', '_' and '.', and not {JUDGE!r}, which "
                "means the judge's own features."
            )
        if matrix.encoder[name].reference is not None and not str(matrix.encoder[name].reference).strip():
            raise BenchError(
                f"{file}: [encoder.{name}] has an empty `reference`; give a folder of images, or leave it out."
            )


def _check_guards(matrix: Matrix, file: str) -> None:
    for name, entry in matrix.guard.items():
        if name == "none":
            raise BenchError(
                f"{file}: [guard.none] is the bare model, which is always part; call the guard something else."
            )
        if len(entry.kinds) != 1:
            given = ", ".join(entry.kinds) or "none"
            raise BenchError(
                f"{file}: [guard.{name}] must have exactly one of load, recipe, method, stack; found {given}."
            )
        for part in entry.stack or []:
            if part not in matrix.guard or matrix.guard[part].stack is not None:
                others = [other for other, guard in matrix.guard.items() if guard.stack is None]
                raise BenchError(f"{file}: [guard.{name}] " + unknown_name_message("guard to stack", part, others))
        for concept in entry.concepts or []:
            if concept not in matrix.concept:
                raise BenchError(f"{file}: [guard.{name}] " + unknown_name_message("concept", concept, matrix.concept))


def _check_concepts(matrix: Matrix, file: str) -> None:
    for name, entry in matrix.concept.items():
        if (entry.prompts is None) == (entry.forget is None):
            raise BenchError(f"{file}: [concept.{name}] must have either `prompts` (built-in) or `forget` (a file).")
        kinds = ("rephrased", "retain", "neighbours", "look_alikes", "without")
        files = [kind for kind in kinds if getattr(entry, kind)]
        if entry.prompts is not None and files:
            raise BenchError(f"{file}: [concept.{name}] has built-in `prompts`, so its own {files[0]} would go unused.")
        for judge in (entry.judge, *entry.second_judges):
            if (judge.preset is None) == (judge.rule is None):
                raise BenchError(
                    f"{file}: judge {judge.name!r} of [concept.{name}] must have either a `preset` or a `rule`."
                )
