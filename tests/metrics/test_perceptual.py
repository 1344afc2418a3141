"""Distances between single images: by numpy, and LPIPS with a random backbone in torchvision's place."""

import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from saferedir.errors import MetricError, MissingExtraError
from saferedir.metrics import feature_distance, lpips

LPIPS = "torchmetrics.image.lpip"


def test_feature_distance_is_euclidean() -> None:
    a, b = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = np.linalg.norm(a.double().numpy() - b.double().numpy(), axis=1)
    assert feature_distance(a, b).tolist() == pytest.approx(expected.tolist())
    assert feature_distance(a, a).tolist() == [0.0] * 5
    with pytest.raises(MetricError, match="expected \\(5, 7\\)"):
        feature_distance(a, b[:4])


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed here")
def test_lpips_without_torchvision_says_what_to_do() -> None:
    images = torch.rand(2, 3, 64, 64)
    with pytest.raises(MissingExtraError, match=r"pip install torchvision.*saferedir\.metrics\.feature_distance"):
        lpips(images, images)
    with pytest.raises(MetricError, match="for both"):
        lpips(images, images[:1])


def alexnet(weights: object = None) -> nn.Module:
    """AlexNet's convolutions with random weights."""
    torch.manual_seed(0)
    relu, pool = nn.ReLU, lambda: nn.MaxPool2d(3, 2)
    layers = [nn.Conv2d(3, 64, 11, 4, 2), relu(), pool(), nn.Conv2d(64, 192, 5, padding=2), relu(), pool()]
    layers += [nn.Conv2d(192, 384, 3, padding=1), relu(), nn.Conv2d(384, 256, 3, padding=1), relu()]
    layers += [nn.Conv2d(256, 256, 3, padding=1), relu(), pool()]
    network = nn.Module()
    network.features = nn.Sequential(*layers)
    return network


@pytest.fixture
def torchvision_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    vision, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
    models.alexnet, models.AlexNet_Weights = alexnet, types.SimpleNamespace(DEFAULT=None)  # type: ignore[attr-defined]
    vision.models = models  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", vision)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    for module in (LPIPS, "torchmetrics.functional.image.lpips"):
        monkeypatch.setattr(f"{module}._TORCHVISION_AVAILABLE", True)


def by_hand(a: Tensor, b: Tensor) -> Tensor:
    """The paper's equation 1, with torchmetrics' linear heads and the stand-in's features."""
    from torchmetrics.functional.image.lpips import _LPIPS

    heads = _LPIPS(pretrained=True, net="alex").lins
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total = torch.zeros(len(a))
    x, y = (((image * 2 - 1) - shift[:, None, None]) / scale[:, None, None] for image in (a, b))
    head = iter(heads)
    for place, layer in enumerate(alexnet().features):
        x, y = layer(x), layer(y)
        if place in (1, 4, 7, 9, 11):
            u, v = (z / (z.square().sum(dim=1, keepdim=True) + 1e-10).sqrt() for z in (x, y))
            total = total + next(head)((u - v).square()).mean(dim=(1, 2, 3))
    return total.detach()


@pytest.mark.usefixtures("torchvision_stand_in")
def test_lpips_is_one_number_a_image_whatever_the_batch() -> None:
    a, b = torch.rand(2, 5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = lpips(a, b, batch=2)
    assert found.shape == (5,)
    torch.testing.assert_close(found, lpips(a, b, batch=5), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found, by_hand(a, b), rtol=1e-3, atol=1e-6)
    assert lpips(a, a, batch=3).abs().max() == 0
    assert len(lpips(a[:3], b[:3], batch=2)) == 3  # a last batch of one image
