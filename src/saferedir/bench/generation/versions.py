"""The libraries whose versions a generated image depends on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from saferedir.utils.packaged import library_version


def library_versions() -> dict[str, str]:
    """The libraries that the images depend on."""
    found = {"saferedir": library_version()}
    for name in ("torch", "diffusers", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
