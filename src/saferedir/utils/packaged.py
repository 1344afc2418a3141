"""Where the weights that ship inside the package lie, and the package's version.

Every world has a folder of weights: its guards, addressed "<world>/<name>", in ``guards/<name>`` there, its pipelines beside
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
#: world -> its folder of weights
_WORLDS: Mapping[str, Path] = {
    "pictoworld": _PACKAGE / "pictoworld" / "weights",
    "world2": _PACKAGE / "pictoworld" / "world2" / "weights",
}
#: packaged pipeline -> its folder
_MODELS: Mapping[str, Path] = {
    "pictoworld": _WORLDS["pictoworld"] / "pipeline",
    "pictoworld-flux": _WORLDS["world2"] / "flux",
    "pictoworld-dit": _WORLDS["world2"] / "dit",
    "pictoworld-ddpm": _WORLDS["world2"] / "ddpm",
}
#: packaged LoRA -> its folder
_LORAS: Mapping[str, Path] = {"pictoworld-few-steps": _WORLDS["pictoworld"] / "few-steps"}
#: former name of a packaged guard -> its name
_FORMER_NAMES = {f"pictoworld/{name}-hardened": f"pictoworld/{name}" for name in ("star", "emblem", "pointillism")}
LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it
GUARD_CONFIG = "guard_config.json"


def packaged_model_path(name: str) -> Path | None:
    """Folder of the packaged diffusers pipeline called `name` ("pictoworld", "pictoworld-flux"), or None."""
    path = _MODELS.get(name)
    return path if path is not None and (path / "model_index.json").is_file() else None


def packaged_lora_path(name: str) -> Path | None:
    """Folder of the packaged LoRA called `name` ("pictoworld-few-steps"), or None."""
    path = _LORAS.get(name)
    return path if path is not None and (path / LORA_FILE).is_file() else None


def packaged_guard_path(name: str) -> Path | None:
    """Folder of the packaged guard called `name` ("pictoworld/star"), now or formerly, or None."""
    world, _, guard = _FORMER_NAMES.get(name, name).partition("/")
    if world not in _WORLDS or not guard or not guard.replace("-", "").replace("_", "").isalnum():
        return None
    path = _WORLDS[world] / "guards" / guard
    return path if (path / GUARD_CONFIG).is_file() else None


def list_packaged_guards() -> list[str]:
    """Names of all packaged guards, sorted: ["pictoworld/star", ...]."""
    return sorted(
        f"{world}/{config.parent.name}"
        for world, folder in _WORLDS.items()
        for config in (folder / "guards").glob(f"*/{GUARD_CONFIG}")
    )


def list_packaged_models() -> list[str]:
    """Names of all packaged pipelines, sorted."""
    return [name for name in sorted(_MODELS) if packaged_model_path(name) is not None]


@cache
def library_version() -> str:
    """Version of the installed saferedir, "0+unknown" from a bare source tree."""
    try:
        return version("saferedir")
    except PackageNotFoundError:
        return "0+unknown"
