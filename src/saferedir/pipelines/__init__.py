"""Facts and mathematics of diffusers pipelines: families, schedules, encoding, latents, loading. Knows no guard."""

from saferedir.pipelines.loading import DTYPES, load_pipeline

__all__ = ["DTYPES", "load_pipeline"]
