"""How far one image is from another: LPIPS where its networks can be had, distance of features anywhere.

Torchmetrics only in `lpips`. Distances between sets: distributions.py.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from saferedir.errors import MetricError, MissingExtraError
from saferedir.metrics import checks
from saferedir.utils.extras import require_extra

Backbone = Literal["alex", "vgg", "squeeze"]


def feature_distance(features_a: Tensor, features_b: Tensor) -> Tensor:
    """(N,) float64 Euclidean distances |a_i - b_i| of two (N, d) feature matrices; 0 is equal, lower is nearer.

    Its unit is the network's own: compare with the distance between seeds (`over_refusal`) or prompts (`feature_drift`).
    """
    a = checks.features("the first features", features_a)
    b = checks.features("the second features", features_b, tuple(a.shape))
    distances: Tensor = torch.linalg.vector_norm(a - b, dim=1)
    return distances


def lpips(images_a: Tensor, images_b: Tensor, backbone: Backbone = "alex", batch: int = 16) -> Tensor:
    """(N,) LPIPS of two (N, 3, H, W) batches in [0, 1], by torchmetrics; 0 is equal, lower is nearer.

    Zhang et al. 2018 (arXiv:1801.03924). The linear heads are in torchmetrics; the backbone comes from torchvision, which
    downloads it once to torch's hub cache. `MissingExtraError` where either cannot be had.
    """
    if images_a.shape != images_b.shape or images_a.ndim != 4:
        raise MetricError(
            f"images have shapes {tuple(images_a.shape)} and {tuple(images_b.shape)}, expected (N, 3, H, W) for both."
        )
    module = require_extra("torchmetrics.image.lpip", "bench", "LPIPS")
    try:
        metric = module.LearnedPerceptualImagePatchSimilarity(net_type=backbone, reduction="none", normalize=True)
    except (ImportError, OSError, RuntimeError) as error:  # not installed, not downloaded, built for another torch
        raise MissingExtraError(
            f"LPIPS needs torchvision, built for the same torch, and its {backbone!r} weights in torch's hub cache "
            f"(pip install torchvision, then once with a network); without them use saferedir.metrics.feature_distance. "
            f"The cause: {error}"
        ) from error
    metric = metric.to(images_a.device)
    distances = []
    with torch.no_grad():
        for a, b in zip(images_a.split(batch), images_b.split(batch), strict=True):
            distances.append(metric(a, b).reshape(-1).cpu())
            metric.reset()
    return torch.cat(distances)
