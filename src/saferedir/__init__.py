"""saferedir: guards that keep a concept out of the images of a diffusers pipeline. The public names, nothing
else.
"""

from types import ModuleType
from typing import TYPE_CHECKING

from saferedir.attach import Attached, attach, detach
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
from saferedir.protect import GuardedPipeline, protect
from saferedir.utils import renamed
from saferedir.utils.packaged import library_version

renamed.install()
__version__ = library_version()

__all__ = [
    "load_pipeline",
    "attach",
    "detach",
    "Attached",
    "protect",
    "GuardedPipeline",
    "Guard",
    "Decision",
    "GuardError",
    "UnsupportedPipelineError",
    "BackboneMismatchError",
    "BlockedError",
    "AlreadyAttachedError",
    "GuardConfigError",
    "GuardNotFoundError",
    "__version__",
]


if not TYPE_CHECKING:  # else a type checker would take any name

    def __getattr__(name: str) -> ModuleType:
        return renamed.moved_attribute(name)
