"""saferedir: guards that keep a concept out of the images of a diffusers pipeline. The public names, nothing
else.
"""

from .attach import Attached, attach
from .decisions import Decision
from .errors import (
    AlreadyAttachedError,
    BackboneMismatchError,
    GuardConfigError,
    GuardError,
    GuardNotFoundError,
    UnsupportedPipelineError,
)
from .guard import Guard
from .pipelines import load_pipeline
from .storage import library_version

__version__ = library_version()

__all__ = [
    "load_pipeline",
    "attach",
    "Attached",
    "Guard",
    "Decision",
    "GuardError",
    "UnsupportedPipelineError",
    "BackboneMismatchError",
    "AlreadyAttachedError",
    "GuardConfigError",
    "GuardNotFoundError",
    "__version__",
]
