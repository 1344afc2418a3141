"""Where the weights that ship inside the package lie, and the package's version.

Guards: ``<world>/weights/guards/<name>``, addressed "<world>/<name>"; pipelines:
    ``<world>/weights/pipeline``.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_WORLDS = ("pictoworld",)
GUARD_CONFIG = "guard_config.json"


def packaged_model_path(name: str) -> Path | None:
    """Folder of the packaged diffusers pipeline called `name` ("pictoworld"), or None."""
    if name not in _WORLDS:
        return None
    path = _PACKAGE / name / "weights" / "pipeline"
    return path if (path / "model_index.json").is_file() else None


def packaged_guard_path(name: str) -> Path | None:
    """Folder of the packaged guard called `name` ("pictoworld/star"), or None."""
    world, _, guard = name.partition("/")
    if world not in _WORLDS or not guard or not guard.replace("-", "").replace("_", "").isalnum():
        return None
    path = _PACKAGE / world / "weights" / "guards" / guard
    return path if (path / GUARD_CONFIG).is_file() else None


def list_packaged_guards() -> list[str]:
    """Names of all packaged guards, sorted: ["pictoworld/star", ...]."""
    return sorted(
        f"{world}/{config.parent.name}"
        for world in _WORLDS
        for config in (_PACKAGE / world / "weights" / "guards").glob(f"*/{GUARD_CONFIG}")
    )


def list_packaged_models() -> list[str]:
    """Names of all packaged pipelines, sorted."""
    return [world for world in sorted(_WORLDS) if packaged_model_path(world) is not None]


def library_version() -> str:
    """Version of the installed saferedir, "0+unknown" from a bare source tree."""
    try:
        return version("saferedir")
    except PackageNotFoundError:
        return "0+unknown"
