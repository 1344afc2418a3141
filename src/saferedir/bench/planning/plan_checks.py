"""What can be wrong in a matrix though every key is known: names of other rooms, and arguments of the call. One sentence each.

Used by plan.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from saferedir.attacks.base import is_static
from saferedir.attacks.registry import ATTACKS
from saferedir.bench.generation.worlds import check_recipe
from saferedir.bench.planning.concepts import Concept
from saferedir.bench.planning.config import Matrix
from saferedir.bench.planning.encoders import MatrixEncoder
from saferedir.encoders.registry import encoder_names
from saferedir.errors import BenchError, GuardError
from saferedir.guards.base import Guard
from saferedir.guards.registry import methods
from saferedir.judges.registry import judge_names
from saferedir.pipelines.call_checks import expected_value
from saferedir.pipelines.text_settings import text_settings
from saferedir.utils.names import unknown_name_message

#: arguments of the pipeline call that are not the matrix's to set
_OURS = {"prompt", "generator", "output_type", "return_dict", "num_images_per_prompt", "latents", "prompt_embeds"}


def check_names(matrix: Matrix) -> None:
    """Names that other rooms know, before anything is loaded."""
    for attack in matrix.attacks:
        if attack not in ATTACKS:
            raise BenchError(unknown_name_message("attack", attack, ATTACKS))
        if not is_static(ATTACKS[attack]):
            raise BenchError(
                f"attack {attack!r} searches on the guarded model itself, which a bench cannot do yet; run "
                f"`saferedir attack {attack}`, and leave it out of `attacks`."
            )
    for entry in matrix.guard.values():
        if entry.method is not None and entry.method not in methods():
            raise BenchError(unknown_name_message("guard method", entry.method, methods()))
        if entry.recipe is not None:
            check_recipe(entry.recipe)
    for concept in matrix.concept.values():
        for judge in (concept.judge, *concept.second_judges):
            if judge.name not in judge_names():
                raise BenchError(unknown_name_message("judge", judge.name, judge_names()))
    for name, encoder in matrix.encoder.items():
        if encoder.name not in encoder_names():
            raise BenchError(f"[encoder.{name}] " + unknown_name_message("encoder", encoder.name, encoder_names()))


def check_without(matrix: Matrix, concepts: Sequence[Concept], encoders: Mapping[str, MatrixEncoder]) -> None:
    """Prompts without the concept are for encoders that read texts, and for forget prompts as they are."""
    for concept in concepts:
        if concept.without is None:
            continue
        generated = [chosen for name in matrix.attacks for chosen in ATTACKS[name]().prompts(concept.prompts).values()]
        if concept.prompts.forget not in generated:
            raise BenchError(
                f"[concept.{concept.name}] has prompts in `without`, which go with the forget prompts as they are, but none of "
                f'the attacks ({", ".join(matrix.attacks)}) generates these; add "none" to `attacks`, or leave them out.'
            )
        if not any(encoder.spec.reads_texts for encoder in encoders.values()):
            raise BenchError(
                f"[concept.{concept.name}] has prompts in `without`, but no [encoder] of the matrix reads texts, so they would "
                "go unused; add one (clip), or leave them out."
            )


def check_attacks(matrix: Matrix, concepts: Sequence[Concept]) -> list[str]:
    """Every attack has a case with the prompts of some concept, or nobody would miss what was never tried.

    Returns a sentence for each concept without one, where another has one.
    """
    untried = []
    for name in matrix.attacks:
        without = [concept.name for concept in concepts if not ATTACKS[name]().prompts(concept.prompts)]
        untried += [
            f"attack {name} for {concept}: it has no prompts of the kind that this attack takes." for concept in without
        ]
        if len(without) == len(concepts):
            raise BenchError(
                f"attack {name!r} has no case: no concept of this matrix has the prompts that it takes; add a file of them "
                '(such as `rephrased` for "phrasings"), or leave the attack out.'
            )
    return untried


def check_call(call: Mapping[str, Any], pipe: Any) -> None:
    """Pipelines with **kwargs swallow a misspelt argument, and generate with their defaults; others take any number."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    known = set(parameters) - {"self", "args", "kwargs"}
    for name, value in call.items():
        if name in _OURS:
            raise BenchError(f"`call` sets {name!r}, which the bench sets itself; leave it out.")
        if name not in known:
            raise BenchError(unknown_name_message(f"argument of {type(pipe).__name__}", name, known - _OURS))
        expected = expected_value(name, value, parameters[name].default)
        if expected is not None:
            raise BenchError(f"`call` sets {name} = {value!r}; expected {expected}.")


def check_text(guards: Iterable[Guard[Any]], call: Mapping[str, Any], pipe: Any) -> None:
    """Settings of the text encoders under which a guard would refuse every image."""
    for guard in guards:
        try:
            guard.check_text(text_settings(pipe, call))
        except GuardError as error:
            raise BenchError(f"no cell of guard {guard.method!r} can be filled: {error}") from error
