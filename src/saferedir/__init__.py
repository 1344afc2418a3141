"""saferedir: guards that keep a concept out of the images of a diffusers pipeline.

The public names, nothing else. Each is imported when it is first asked for, so that `import saferedir` and the command line's
`--help` do not wait for torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from saferedir.utils import renamed
from saferedir.utils.lazy import lazy_names
from saferedir.utils.packaged import library_version

if TYPE_CHECKING:
    from saferedir.attach import Attached, attach, detach
    from saferedir.attacks.run import attack
    from saferedir.bake import bake
    from saferedir.bench.bench import Bench
    from saferedir.decisions import Decision
    from saferedir.errors import (
        AlreadyAttachedError,
        BackboneMismatchError,
        BlockedError,
        GuardConfigError,
        GuardError,
        GuardNotFoundError,
        UnsupportedPipelineError,
    )
    from saferedir.guards.base import Guard
    from saferedir.pipelines.loading import load_pipeline
    from saferedir.policy.rules import Policy
    from saferedir.protect import GuardedPipeline, protect
    from saferedir.training.duo.train import train_duo
    from saferedir.training.esd.train import train_esd
    from saferedir.training.image_verifier.train import train_verifier
    from saferedir.training.saferedir.train import train_saferedir
    from saferedir.training.uce.train import train_uce

renamed.install()
__version__ = library_version()

__all__ = [
    "load_pipeline",
    "attach",
    "detach",
    "Attached",
    "protect",
    "GuardedPipeline",
    "Policy",
    "Guard",
    "Decision",
    "train_saferedir",
    "train_duo",
    "train_uce",
    "train_esd",
    "train_verifier",
    "bake",
    "Bench",
    "attack",
    "GuardError",
    "UnsupportedPipelineError",
    "BackboneMismatchError",
    "BlockedError",
    "AlreadyAttachedError",
    "GuardConfigError",
    "GuardNotFoundError",
    "__version__",
]

#: public name -> the module that has it
_HOMES = {
    "load_pipeline": "pipelines.loading",
    "attach": "attach",
    "detach": "attach",
    "Attached": "attach",
    "protect": "protect",
    "GuardedPipeline": "protect",
    "Policy": "policy.rules",
    "Guard": "guards.base",
    "Decision": "decisions",
    "train_saferedir": "training.saferedir.train",
    "train_duo": "training.duo.train",
    "train_uce": "training.uce.train",
    "train_esd": "training.esd.train",
    "train_verifier": "training.image_verifier.train",
    "bake": "bake",
    "Bench": "bench.bench",
    "attack": "attacks.run",
    "GuardError": "errors",
    "UnsupportedPipelineError": "errors",
    "BackboneMismatchError": "errors",
    "BlockedError": "errors",
    "AlreadyAttachedError": "errors",
    "GuardConfigError": "errors",
    "GuardNotFoundError": "errors",
}


class _Package(ModuleType):
    """This package, in which a public name wins over the module of the same name (attach, protect)."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOMES.get(name) == name:  # its module was imported
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package

_public = lazy_names(__name__, _HOMES)

if not TYPE_CHECKING:  # else a type checker would take any name

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return _public(name)
        if find_spec(f"{__name__}.{name}") is not None:  # sr.errors, sr.guards, … as if they had been imported
            return import_module(f"{__name__}.{name}")
        return renamed.moved_attribute(name)
