"""Numbers with intervals: pure functions first. Torchmetrics and transformers only in the functions that need them. One
table of all of them: docs/metrics.md.
"""

import warnings
from typing import Any

from saferedir.metrics.bootstrap import Mean, Resampling, bootstrap_interval, bootstrap_mean, bootstrap_ratio
from saferedir.metrics.clip_score import ClipModel, ClipScores, clip_score
from saferedir.metrics.conflicts import GuardConflict, guard_conflicts
from saferedir.metrics.cost import Measured, Stopwatch, measure, time_ratio
from saferedir.metrics.distributions import (
    FeatureNetwork,
    cmmd,
    fid,
    frechet_distance,
    inception,
    kernel_distance,
    kid,
)
from saferedir.metrics.forgetting import (
    LiveSuccess,
    attack_success_rate,
    csdr,
    forgetting_success_rate,
    live_attack_success_rate,
    successful_prompts,
)
from saferedir.metrics.jackknife import distance_with_interval, jackknife_interval, prompt_groups
from saferedir.metrics.paired import McNemar, exact_mcnemar, holm, mcnemar, paired_difference
from saferedir.metrics.perceptual import feature_distance, lpips
from saferedir.metrics.preservation import (
    Choices,
    Collateral,
    OverRefusal,
    collateral,
    feature_drift,
    identical_share,
    in_prompt_preservation,
    over_refusal,
    retention,
)
from saferedir.metrics.rates import Rate, auroc, conformal_threshold, effective_size, wilson_interval

__all__ = [
    # shares, means and their intervals
    "Rate",
    "wilson_interval",
    "effective_size",
    "Mean",
    "Resampling",
    "bootstrap_interval",
    "bootstrap_mean",
    "bootstrap_ratio",
    # two arms on the same prompts
    "McNemar",
    "mcnemar",
    "exact_mcnemar",
    "paired_difference",
    "holm",
    # does one guard raise another concept?
    "GuardConflict",
    "guard_conflicts",
    # is the concept gone?
    "attack_success_rate",
    "successful_prompts",
    "LiveSuccess",
    "live_attack_success_rate",
    "forgetting_success_rate",
    "csdr",
    # is the rest still there?
    "Choices",
    "retention",
    "in_prompt_preservation",
    "Collateral",
    "collateral",
    "OverRefusal",
    "over_refusal",
    "feature_drift",
    "identical_share",
    # images and sets of images
    "feature_distance",
    "lpips",
    "frechet_distance",
    "kernel_distance",
    "cmmd",
    "fid",
    "kid",
    "FeatureNetwork",
    "inception",
    "distance_with_interval",
    "jackknife_interval",
    "prompt_groups",
    # images and words
    "clip_score",
    "ClipModel",
    "ClipScores",
    # cost
    "Stopwatch",
    "Measured",
    "measure",
    "time_ratio",
    # scores and thresholds
    "auroc",
    "conformal_threshold",
]


def __getattr__(name: str) -> Any:
    """The name that `retention` had."""
    if name == "kept":
        warnings.warn("saferedir.metrics.kept is now called retention.", DeprecationWarning, stacklevel=2)
        return retention
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
