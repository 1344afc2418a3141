"""Optional packages: imported when first needed, with an error that names the extra."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from saferedir.errors import MissingExtraError


def require_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra brings it: `require_extra("nudenet", "nudenet", "the NudeNet judge")`."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f'{purpose} needs the package {module.split(".")[0]!r}: pip install "saferedir[{extra}]".'
        ) from error
