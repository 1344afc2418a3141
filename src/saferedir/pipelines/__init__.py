"""Facts and mathematics of diffusers pipelines: families, schedules, encoding, latents, loading. Knows no guard."""

from typing import TYPE_CHECKING

from saferedir.utils.lazy import lazy_names

if TYPE_CHECKING:
    from saferedir.pipelines.loading import DTYPES, load_pipeline

__all__ = ["DTYPES", "load_pipeline"]

if not TYPE_CHECKING:  # else a type checker would take any name
    __getattr__ = lazy_names(__name__, dict.fromkeys(__all__, "loading"))
