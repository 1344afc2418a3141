"""Numbers with intervals: pure functions first. Imports torch and the standard library only."""

from saferedir.metrics.rates import auroc, conformal_threshold, wilson_interval

__all__ = ["auroc", "conformal_threshold", "wilson_interval"]
