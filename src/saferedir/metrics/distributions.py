"""Distances between two sets of images: Fréchet (FID), kernel (KID) and Gaussian-kernel (CMMD), on features of any network.

Torchmetrics only in `fid`, `kid` and `inception`. Distances between single images: perceptual.py. A number belongs to
its network and its n: FID of PictoWorld's judge is no FID of Inception-v3.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saferedir.errors import MetricError, MissingExtraError
from saferedir.metrics import checks
from saferedir.utils.extras import require_extra

#: (B, 3, H, W) RGB in [0, 1] to (B, d)
FeatureFunction = Callable[[Tensor], Tensor]
Kernel = Callable[[Tensor, Tensor], Tensor]
#: mean and root of the covariance
Gaussian = tuple[Tensor, Tensor]
#: width of CMMD's kernel and factor before it, as in its paper
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
_ROWS_AT_ONCE = 1024


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """|m_a - m_b|² + tr(S_a + S_b - 2 (S_a S_b)^½) of (N, d) and (M, d) features, N, M >= 2; >= 0, lower is nearer.

    Heusel et al. 2017 (arXiv:1706.08500), float64 throughout. With S = RᵀR (R from a QR of the centred features),
    tr((S_a S_b)^½) is the sum of the singular values of R_a R_bᵀ: no root of a matrix that is not symmetric, and exact where
    there are fewer images than features. S divides by N - 1.
    """
    a, b = feature_pair(features_a, features_b)
    return frechet_of(gaussian_of(a), gaussian_of(b))


def gaussian_of(features: Tensor) -> Gaussian:
    """Mean (d,) of (N, d) float64 features, and a (min(N, d), d) matrix R with RᵀR their covariance."""
    mean = features.mean(0)
    return mean, torch.linalg.qr(features - mean, mode="r").R / (len(features) - 1) ** 0.5


def frechet_of(first: Gaussian, second: Gaussian) -> float:
    """`frechet_distance` of two sets by their `gaussian_of`."""
    (mean_a, root_a), (mean_b, root_b) = first, second
    overlap = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * overlap
    return max(0.0, float(distance))


def kernel_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Unbiased squared MMD with the kernel (x·y / d + 1)³ of (N, d) and (M, d) features, N, M >= 2; about 0 for equal
    distributions, and as often below as above it; lower is nearer.

    Bińkowski et al. 2018 (arXiv:1801.01401); Gretton et al. 2012, eq. 3. KID on one subset that is everything.
    """
    a, b = feature_pair(features_a, features_b)
    kernel, within = polynomial_kernel(a.shape[1]), 0.0
    for x in (a, b):
        itself = float(((x.square().sum(dim=1) / x.shape[1] + 1) ** 3).sum())
        within += (_kernel_sum(kernel, x, x) - itself) / (len(x) * (len(x) - 1))
    return within - 2 * _kernel_sum(kernel, a, b) / (len(a) * len(b))


def polynomial_kernel(d: int) -> Kernel:
    """(x·y / d + 1)³ between the rows of two sets."""
    return lambda x, y: (x @ y.T / d + 1) ** 3


def cmmd(features_a: Tensor, features_b: Tensor, sigma: float = CMMD_SIGMA, scale: float = CMMD_SCALE) -> float:
    """scale × squared MMD with the kernel exp(-|x - y|² / 2 sigma²) of (N, d) and (M, d) features; >= 0, lower is nearer.

    Jayasumana et al. 2024 (arXiv:2401.09603): CLIP image embeddings of unit length (`ClipModel.images`), sigma 10, scale 1000;
    sigma and scale belong in the record. Deviation from the paper's equation: the biased estimate, whose sums include i = j and
    which is never negative.
    """
    if sigma <= 0:
        raise MetricError(f"sigma is {sigma}, expected > 0.")
    a, b = feature_pair(features_a, features_b)
    kernel = gaussian_kernel(sigma)
    means = [_kernel_sum(kernel, x, y) / (len(x) * len(y)) for x, y in ((a, a), (b, b), (a, b))]
    return max(0.0, scale * (means[0] + means[1] - 2 * means[2]))


def gaussian_kernel(sigma: float) -> Kernel:
    """exp(-|x - y|² / 2 sigma²) between the rows of two sets."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * x @ y.T
        return (-squared.clamp(min=0) / (2 * sigma**2)).exp()

    return kernel


def _kernel_sum(kernel: Kernel, x: Tensor, y: Tensor) -> float:
    """Sum of the kernel over all pairs, some rows at a time."""
    return float(torch.stack([kernel(rows, y).sum() for rows in x.split(_ROWS_AT_ONCE)]).sum())


def feature_pair(features_a: Tensor, features_b: Tensor) -> tuple[Tensor, Tensor]:
    """(N, d) and (M, d) as float64, N, M >= 2; `MetricError` where they are not of one network, or not finite."""
    a = checks.features("the first features", features_a, at_least=2)
    b = checks.features("the second features", features_b, at_least=2)
    if a.shape[1] != b.shape[1]:
        raise MetricError(
            f"the features have {a.shape[1]} and {b.shape[1]} columns, expected the same network for both."
        )
    return a, b


class FeatureNetwork(nn.Module):
    """Any feature function as the module that torchmetrics asks for; features come back as float64 on the CPU.

    Args:
        function: (B, 3, H, W) RGB in [0, 1] to (B, d): a network, a judge's `features`, a CLIP's `images`.
        num_features: d; None reads the function's own `num_features`, or lets `fid` and `kid` find it.
    """

    def __init__(self, function: FeatureFunction, num_features: int | None = None) -> None:
        super().__init__()
        self.function: FeatureFunction = function
        count = num_features if num_features is not None else getattr(function, "num_features", None)
        if count is not None:
            self.num_features = int(count)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, d) float64."""
        features = self.function(images)
        if features.ndim != 2 or len(features) != len(images):
            raise MetricError(
                f"the feature network gave shape {tuple(features.shape)} for {len(images)} images, expected ({len(images)}, d)."
            )
        return features.detach().double().cpu()


def fid(images_a: Tensor, images_b: Tensor, network: FeatureFunction, batch: int = 64) -> float:
    """torchmetrics' Fréchet distance of (N, 3, H, W) and (M, 3, H, W) images in [0, 1] through `network`; lower is nearer.

    The same as `frechet_distance` of the features. `MissingExtraError` without torchmetrics.
    """
    module = require_extra("torchmetrics.image.fid", "bench", "FID through torchmetrics")
    features = _network(network, images_a)
    metric = module.FrechetInceptionDistance(feature=features, normalize=True)
    _feed(metric, images_a, images_b, batch)
    return float(metric.compute())


def kid(
    images_a: Tensor,
    images_b: Tensor,
    network: FeatureFunction,
    batch: int = 64,
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """torchmetrics' KID of (N, 3, H, W) and (M, 3, H, W) images in [0, 1]: mean and standard deviation over subsets.

    The deviation is that of a subset's KID, not an error of the mean. Global random numbers are left as they were.

    Args:
        images_a: as in `fid`.
        images_b: as in `fid`.
        network: as in `fid`.
        batch: images at a time through the network.
        subsets: how many.
        subset_size: how large; None is min(N, M, 1000).
        seed: of the choice of subsets.
    """
    module = require_extra("torchmetrics.image.kid", "bench", "KID through torchmetrics")
    size = subset_size or min(len(images_a), len(images_b), 1000)
    if not 2 <= size <= min(len(images_a), len(images_b)):
        raise MetricError(
            f"subset_size is {size} for {len(images_a)} and {len(images_b)} images, expected 2 to the smaller number."
        )
    features = _network(network, images_a)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*save all extracted features in buffer.*")
        metric = module.KernelInceptionDistance(feature=features, subsets=subsets, subset_size=size, normalize=True)
    _feed(metric, images_a, images_b, batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def inception(weights: str | Path, layer: int = 2048) -> FeatureNetwork:
    """The FID's own Inception-v3, from a weights file at hand (torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`).

    Args:
        weights: the file.
        layer: 64, 192, 768 or 2048 features.
    """
    module = require_extra("torchmetrics.image.fid", "bench", "FID through torchmetrics")
    if not Path(weights).is_file():
        raise MetricError(
            f"there is no weights file {str(weights)!r} for Inception-v3; give one, or another feature network."
        )
    try:
        network = module.NoTrainInceptionV3("inception-v3-compat", [str(layer)], str(weights))
    except ImportError as error:
        raise MissingExtraError(
            "Inception-v3 needs the package 'torch-fidelity' (and, through it, torchvision): pip install torch-fidelity, "
            "or give fid and kid another feature network."
        ) from error

    def features(images: Tensor) -> Tensor:
        values: Tensor = network((images * 255).byte())  # as torchmetrics does with images in [0, 1]
        return values

    return FeatureNetwork(features, layer)


def _network(network: FeatureFunction, images: Tensor) -> FeatureNetwork:
    """The network as a module with `num_features`, measured with one image where it is not given."""
    if images.ndim != 4 or not len(images):
        raise MetricError(f"images have shape {tuple(images.shape)}, expected (N, 3, H, W) with N >= 2.")
    module = network if isinstance(network, FeatureNetwork) else FeatureNetwork(network)
    if not hasattr(module, "num_features"):
        module = FeatureNetwork(network, int(module(images[:1]).shape[1]))
    return module


def _feed(metric: Any, images_a: Tensor, images_b: Tensor, batch: int) -> None:
    if min(len(images_a), len(images_b)) < 2:
        raise MetricError(f"there are {len(images_a)} and {len(images_b)} images, expected at least 2 of each.")
    for images, real in ((images_a, True), (images_b, False)):
        for chunk in images.split(batch):
            metric.update(chunk, real=real)
