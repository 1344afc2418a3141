"""Old paths of modules that have moved: importing one still works, gives the very module of the new path, and warns.

`NEW_PATHS` is the whole table. Both names stand for one module object, so that classes are the same and a patch of one
is a patch of the other. `saferedir` installs the finder; for a caller that never names an old path an import costs one more
look-up in a dict.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import CodeType, ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: old path -> new path, both below `saferedir`; a package stands for all that is in it
NEW_PATHS: dict[str, str] = {
    "adapters": "pipelines.lora",
    "own_adapters": "pipelines.own_adapters",
    "call_arguments": "policy.call_arguments",
    "encoding": "pipelines.encoding",
    "families": "pipelines.families",
    "fingerprint": "pipelines.fingerprint",
    "latents": "pipelines.latents",
    "packing": "pipelines.packing",
    "precision": "pipelines.precision",
    "safety_checker": "pipelines.safety_checker",
    "schedules": "pipelines.schedules",
    "solver": "pipelines.solver",
    "text_lengths": "pipelines.text_lengths",
    "text_settings": "pipelines.text_settings",
    "text_towers": "pipelines.text_encoders",
    "pipelines.text_towers": "pipelines.text_encoders",
    "guard_config": "guards.config",
    "step": "guards.step",
    "gates": "guards.gates",
    "storage": "guards.storage",
    "packaged": "utils.packaged",
    "checks": "utils.checks",
    "extras": "utils.extras",
    "names": "utils.names",
    "broadcast": "utils.broadcast",
    "figures": "utils.figures",
    "outputs": "policy.outputs",
    "guards.saferedir.batches": "training.saferedir.batches",
    "guards.saferedir.calibration": "training.saferedir.calibration",
    "guards.saferedir.dataset": "training.saferedir.dataset",
    "guards.saferedir.losses": "training.saferedir.losses",
    "guards.saferedir.recalibrate": "training.saferedir.recalibrate",
    "guards.saferedir.rollouts": "training.saferedir.rollouts",
    "guards.saferedir.thresholds": "training.saferedir.thresholds",
    "guards.saferedir.training": "training.saferedir.train",
    "guards.saferedir.pairs": "training.saferedir.pairs",
    "guards.duo.loop": "training.duo.loop",
    "guards.duo.loss": "training.duo.loss",
    "guards.duo.noise": "training.duo.noise",
    "guards.duo.pair_files": "training.duo.pair_files",
    "guards.duo.pairs": "training.duo.pairs",
    "guards.duo.train_config": "training.duo.train_config",
    "guards.duo.training": "training.duo.train",
    "bench.prompt_files": "prompts",
    "bench.prompt_files.cautions": "prompts.prompt_warnings",
    "bench.config": "bench.planning.config",
    "bench.config_checks": "bench.planning.config_checks",
    "bench.matrix": "bench.planning.matrix",
    "bench.plan": "bench.planning.plan",
    "bench.plan_checks": "bench.planning.plan_checks",
    "bench.concepts": "bench.planning.concepts",
    "bench.guard_parts": "bench.planning.guards",
    "bench.judging": "bench.planning.judges",
    "bench.encoding": "bench.planning.encoders",
    "bench.cautions": "bench.planning.prompt_warnings",
    "bench.drawing": "bench.generation.generate",
    "bench.seeing": "bench.generation.score",
    "bench.resources": "bench.generation.resources",
    "bench.worlds": "bench.generation.worlds",
    "bench.checksums": "bench.generation.checksums",
    "bench.work": "bench.executors.work",
    "bench.workers": "bench.executors.workers",
    "bench.ray_executor": "bench.executors.ray_executor",
    "bench.store": "bench.storage.store",
    "bench.drawn": "bench.storage.generated_set",
    "bench.planned": "bench.storage.saved_plan",
    "bench.vectors": "bench.storage.embeddings",
    "bench.cells": "bench.evaluation.cells",
    "bench.counting": "bench.evaluation.evaluate",
    "bench.encoded": "bench.evaluation.encoder_metrics",
    "bench.bystanders": "bench.evaluation.side_effects",
    "bench.costs": "bench.evaluation.costs",
    "bench.calibrating": "bench.evaluation.calibrate",
    "bench.looking": "bench.evaluation.rescore",
    "bench.rejudging": "bench.evaluation.rejudge",
    "bench.published": "bench.report.published",
    "bench.reporting": "bench.report.from_folder",
    "bench.report.svg": "bench.report.plots.svg",
    "bench.report.figures": "bench.report.plots.bars",
    "bench.report.scatter": "bench.report.plots.scatter",
    "bench.report.labels": "bench.report.plots.labels",
    "bench.report.data": "bench.report.content.data",
    "bench.report.numbers": "bench.report.content.numbers",
    "bench.report.limits": "bench.report.content.limits",
    "bench.report.measures": "bench.report.content.measures",
    "bench.report.tables": "bench.report.content.tables",
    "bench.report.ranking": "bench.report.content.ranking",
    "bench.report.headline": "bench.report.content.headline",
    "bench.report.reading": "bench.report.content.reading",
    "bench.report.corrected": "bench.report.content.corrected",
    "bench.report.reported": "bench.report.content.reported",
    "bench.report.captions": "bench.report.content.captions",
    "bench.report.provenance": "bench.report.content.provenance",
    "judges.pictures": "judges.images",
    "prompts.cautions": "prompts.prompt_warnings",
}

#: module and old name -> module and new name, below `saferedir`; "Embeds" keeps its name, and is no longer the way to answer
NEW_NAMES: dict[tuple[str, str], tuple[str, str]] = {
    ("guard", "Apart"): ("guards.step", "SecondLatents"),
    ("guard", "Embeds"): ("guards.step", "Embeds"),
    ("guards.base", "Apart"): ("guards.step", "SecondLatents"),
    ("guards.base", "Embeds"): ("guards.step", "Embeds"),
    ("guards.step", "Apart"): ("guards.step", "SecondLatents"),
    ("pipelines.encoding", "Encoded"): ("pipelines.conditioning", "PromptEmbeds"),
    ("judges.registry", "Entry"): ("judges.registry", "RegisteredJudge"),
    ("encoders.registry", "Entry"): ("encoders.registry", "RegisteredEncoder"),
    ("judges.images", "read_picture"): ("judges.images", "read_image_tensor"),
    ("judges.images", "picture_files"): ("judges.images", "image_files"),
    ("guards.negation.calibration", "Calibration"): ("guards.negation.calibration", "KernelCalibration"),
    ("target", "Policy"): ("target.policy", "ProtectSettings"),
    ("target.policy", "Policy"): ("target.policy", "ProtectSettings"),
}
#: what to write in place of a name that was not simply renamed
ADVICE = {"Embeds": "answer a Conditioning, as in step.conditioning.with_cond(prompt=...)"}


def old_name(module: str, name: str) -> Any:
    """For `__getattr__` of a module: what `name` is called now, with a warning; AttributeError for names it never had."""
    target = NEW_NAMES.get((module.removeprefix("saferedir."), name))
    if target is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    advice = ADVICE.get(name, f"import {target[1]} from saferedir.{target[0]}")
    warnings.warn(f"{module}.{name} is an old name; {advice}.", DeprecationWarning, stacklevel=3)
    return getattr(import_module(f"saferedir.{target[0]}"), target[1])


def new_path(old: str) -> str | None:
    """New path of a module, both below `saferedir`: its own row, or that of a package it was in. None where it never moved."""
    if old in NEW_PATHS:
        return NEW_PATHS[old]
    package, _, name = old.rpartition(".")
    target = new_path(package) if package else None
    return None if target is None else f"{target}.{name}"


class OldAttribute:
    """The old name of an attribute: read on an instance it gives the new one, with a warning."""

    def __init__(self, new: str) -> None:
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self.old = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        sentence = f"{type(instance).__name__}.{self.old} is an old name; use {type(instance).__name__}.{self.new}."
        warnings.warn(sentence, DeprecationWarning, stacklevel=2)
        return getattr(instance, self.new)


def old_argument(old: str, new: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: the function, or the class whose `__init__` it is, takes keyword `old` for `new`, with a warning."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def renamed(*args: P.args, **kwargs: P.kwargs) -> T:
            if old in kwargs and new not in kwargs:
                name = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
                sentence = f"{name}({old}=) is an old name; write {name}({new}=)."
                warnings.warn(sentence, DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return renamed

    return decorate


class _Redirect(InspectLoader):
    """Loads the module of the new path in place of one of its own; its code and source are those of the new path."""

    def __init__(self, new: str) -> None:
        self.new = new

    def _loader(self) -> InspectLoader:
        spec = find_spec(self.new)
        assert spec is not None and isinstance(spec.loader, InspectLoader), f"{self.new} has no source"
        return spec.loader

    def get_code(self, fullname: str) -> CodeType | None:
        """The code of the new path, for `python -m` and runpy."""
        warnings.warn(f"{fullname} has moved to {self.new}; run it from there.", DeprecationWarning, stacklevel=2)
        return self._loader().get_code(self.new)

    def get_source(self, fullname: str) -> str | None:
        """The source of the new path."""
        return self._loader().get_source(self.new)

    def is_package(self, fullname: str) -> bool:
        """Never: what is below an old path is found by this finder, too."""
        return False

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} has moved to {self.new}; import it from there.", DeprecationWarning, stacklevel=2)
        module = import_module(self.new)
        self.own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own_spec  # the import system has just written the old path's over it


class RenamedModules(MetaPathFinder):
    """Finds modules by their old paths."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for an old path of the table; None for every other name."""
        package, _, rest = fullname.partition(".")
        new = new_path(rest) if package == "saferedir" else None
        return None if new is None else ModuleSpec(fullname, _Redirect(f"saferedir.{new}"), is_package=False)


def install() -> None:
    """Put the finder first, for a folder that an old installation left behind would be found before it. Once is enough."""
    if not any(isinstance(finder, RenamedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, RenamedModules())


def moved_attribute(name: str) -> ModuleType:
    """For `__getattr__` of the package: `saferedir.families` without an import of its own; AttributeError for other names."""
    if name not in NEW_PATHS:
        raise AttributeError(f"module 'saferedir' has no attribute {name!r}")
    return import_module(f"saferedir.{name}")
