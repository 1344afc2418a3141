"""Distances between sets: Gaussians of known distance, scipy's matrix root, loops over pairs, and torchmetrics."""

import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import ortho_group
from torch import Tensor, nn

from saferedir.errors import MetricError, MissingExtraError
from saferedir.metrics import FeatureNetwork, cmmd, fid, frechet_distance, inception, kernel_distance, kid
from saferedir.pictoworld.evaluation import load_judge


def cloud(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(d, d, generator=generator).double()
    return torch.randn(n, d, generator=generator).double() @ mixed + shift


def whitened(n: int, d: int, seed: int) -> Tensor:
    """(n, d) with mean exactly 0 and covariance exactly 1."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double()
    return torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(n - 1)


def frechet_by_scipy(a: Tensor, b: Tensor) -> float:
    x, y = a.numpy(), b.numpy()
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(s + t - 2 * np.real(sqrtm(s @ t))))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), d=st.integers(2, 6), shift=st.floats(-2, 2))
def test_frechet_distance_agrees_with_scipys_matrix_root(seed: int, d: int, shift: float) -> None:
    a, b = cloud(40, d, seed), cloud(30, d, seed + 1, shift)
    assert frechet_distance(a, b) == pytest.approx(frechet_by_scipy(a, b), rel=1e-6, abs=1e-8)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9, abs=1e-9)


def test_frechet_distance_of_gaussians_in_closed_form() -> None:
    """Commuting covariances: |m|² + sum of (sigma_i - tau_i)²."""
    sigma, tau = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 1.0, 0.5]).double()
    turn = torch.from_numpy(ortho_group.rvs(3, random_state=0))
    a = whitened(50, 3, 0) * sigma @ turn
    b = whitened(80, 3, 1) * tau @ turn + torch.tensor([1.0, -2.0, 2.0])
    assert frechet_distance(a, b) == pytest.approx(9 + 4 + 1 + 0, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(12, rel=1e-9)


def test_frechet_distance_with_fewer_images_than_features() -> None:
    """Features of zero variance or copied columns add what their copies have, and no negative number."""
    a, b = cloud(10, 4, 0), cloud(12, 4, 1)
    wide_a, wide_b = (torch.cat([x, torch.zeros(len(x), 40).double()], dim=1) for x in (a, b))
    assert frechet_distance(wide_a, wide_b) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(wide_a, wide_a) >= 0
    assert frechet_distance(a.repeat(1, 20), b.repeat(1, 20)) == pytest.approx(20 * frechet_distance(a, b), rel=1e-9)


def loop_kid(a: Tensor, b: Tensor) -> float:
    def k(x: Tensor, y: Tensor) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    same = [np.mean([k(x, y) for i, x in enumerate(z) for j, y in enumerate(z) if i != j]) for z in (a, b)]
    return float(sum(same) - 2 * np.mean([k(x, y) for x in a for y in b]))


def loop_cmmd(a: Tensor, b: Tensor, sigma: float) -> float:
    def mean(x: Tensor, y: Tensor) -> float:
        return float(np.mean([math.exp(-float((p - q).square().sum()) / (2 * sigma**2)) for p in x for q in y]))

    return 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


def test_kernel_distances_are_their_sums_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = cloud(9, 3, 0), cloud(7, 3, 1, 0.5)
    assert kernel_distance(a, b) == pytest.approx(loop_kid(a, b), rel=1e-9)
    assert cmmd(a, b) == pytest.approx(loop_cmmd(a, b, 10.0), rel=1e-6)
    assert cmmd(a, b, sigma=2.0) == pytest.approx(loop_cmmd(a, b, 2.0), rel=1e-9)
    monkeypatch.setattr("saferedir.metrics.distributions._ROWS_AT_ONCE", 2)
    assert kernel_distance(a, b) == pytest.approx(loop_kid(a, b), rel=1e-9)


def test_kernel_distance_is_unbiased_and_cmmd_is_never_negative() -> None:
    draws = [kernel_distance(cloud_of(seed), cloud_of(seed + 500)) for seed in range(200)]
    error = np.std(draws) / math.sqrt(len(draws))
    assert abs(np.mean(draws)) < 3 * error
    assert min(draws) < 0 < max(draws)
    assert cmmd(cloud_of(0), cloud_of(0)) == pytest.approx(0, abs=1e-9)
    assert cmmd(cloud_of(0), cloud_of(1)) > 0


def cloud_of(seed: int) -> Tensor:
    return torch.randn(20, 3, generator=torch.Generator().manual_seed(seed)).double()


class Means(nn.Module):
    """Twelve features: colour means of the four quarters."""

    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def images(n: int, seed: int) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) ** (1 + seed)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_torchmetrics_agrees_with_the_closed_forms() -> None:
    """Their own metrics, with our features given as they are; then our wrappers around them."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = cloud(60, 5, 0), cloud(60, 5, 1, 0.3)
    identity: Any = nn.Identity()
    identity.num_features = 5
    for metric, ours in (
        (FrechetInceptionDistance(feature=identity), frechet_distance),
        (KernelInceptionDistance(feature=identity, subsets=1, subset_size=60), kernel_distance),
    ):
        metric.update(a, real=True)
        metric.update(b, real=False)
        theirs = metric.compute()
        value = float(theirs[0]) if isinstance(theirs, tuple) else float(theirs)
        assert ours(a, b) == pytest.approx(value, rel=1e-6)


def test_fid_and_kid_of_images_are_those_of_their_features() -> None:
    a, b = images(40, 0), images(40, 1)
    network = Means()
    expected = frechet_distance(network(a), network(b))
    assert fid(a, b, network, batch=7) == pytest.approx(expected, rel=1e-6)
    assert fid(a, b, lambda images: network(images)) == pytest.approx(expected, rel=1e-6)  # d is found by itself
    assert fid(a, b, FeatureNetwork(network)) == pytest.approx(expected, rel=1e-6)
    mean, deviation = kid(a, b, network, subsets=1, subset_size=40)
    assert mean == pytest.approx(kernel_distance(network(a), network(b)), rel=1e-6)
    assert deviation == 0


def test_kid_leaves_the_global_random_numbers_alone() -> None:
    a, b = images(30, 0), images(20, 1)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = kid(a, b, Means(), subsets=5, subset_size=10)
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(3)
    assert kid(a, b, Means(), subsets=5, subset_size=10) == first
    assert kid(a, b, Means(), subsets=5, subset_size=10, seed=1) != first
    with pytest.raises(MetricError, match="subset_size is 21"):
        kid(a, b, Means(), subset_size=21)


def test_pictoworlds_judge_is_a_network_that_works_offline() -> None:
    judge = load_judge()
    a = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    b = a.flip(0) * 0.5
    assert fid(a, b, judge.features) == pytest.approx(frechet_distance(judge.features(a), judge.features(b)), rel=1e-3)
    assert fid(a, a, judge.features) == pytest.approx(0, abs=1e-3)


def test_wrong_features_and_images_are_refused() -> None:
    a = cloud(5, 3, 0)
    for bad, words in (
        (a[:1], "N >= 2"),
        (a[:, :2], "3 and 2 columns"),
        (a[:, 0], "expected \\(N, d\\)"),
        (a * torch.nan, "not finite"),
    ):
        for distance in (frechet_distance, kernel_distance, cmmd):
            with pytest.raises(MetricError, match=words):
                distance(a, bad)
    with pytest.raises(MetricError, match="sigma is 0"):
        cmmd(a, a, sigma=0)
    with pytest.raises(MetricError, match="shape \\(1, 3, 8, 8\\) for 1 images"):
        fid(images(5, 0), images(5, 1), lambda images: images)
    with pytest.raises(MetricError, match="expected \\(N, 3, H, W\\)"):
        fid(torch.zeros(3, 8, 8), images(5, 1), Means())
    with pytest.raises(MetricError, match="at least 2"):
        fid(images(5, 0), images(1, 1), Means())


def test_inception_needs_its_file_and_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MetricError, match=r"no weights file 'nowhere\.pth'"):
        inception("nowhere.pth")
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"")
    stand_in = types.ModuleType("torchmetrics.image.fid")

    def missing(*_: object) -> None:
        raise ModuleNotFoundError("requires that `Torch-fidelity` is installed")

    stand_in.NoTrainInceptionV3 = missing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", stand_in)
    with pytest.raises(MissingExtraError, match="pip install torch-fidelity"):
        inception(weights)
    seen = []

    def network(name: str, layers: list[str], path: str) -> object:
        assert (layers, path) == (["64"], str(weights))
        return lambda images: seen.append(images) or images.flatten(1)[:, :64].float()

    stand_in.NoTrainInceptionV3 = network  # type: ignore[attr-defined]
    found = inception(weights, 64)
    assert found.num_features == 64
    assert found(torch.ones(2, 3, 8, 8)).shape == (2, 64)
    assert seen[0].dtype == torch.uint8 and int(seen[0].max()) == 255
