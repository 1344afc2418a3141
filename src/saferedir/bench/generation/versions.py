"""The libraries whose versions a generated image depends on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from saferedir.utils.packaged import library_version


def library_versions() -> dict[str, str]:
    """The libraries that the images depend on."""
    versions = {"saferedir": library_version()}
    for name in ("torch", "diffusers", "transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions
