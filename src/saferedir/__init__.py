"""saferedir: guards that keep a concept out of the images of a diffusers pipeline. The public names, nothing
else.
"""

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
from saferedir.guard import Guard
from saferedir.packaged import library_version
from saferedir.pipelines import load_pipeline
from saferedir.protect import GuardedPipeline, protect

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
