"""The counting helper of benchmarks/flops.py on closed forms, and the arithmetic of its page on small cases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks import flops
from benchmarks.flops import BACKBONES, Backbone, Cost, count_flops
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from saferedir.guards.saferedir.network import Redirector

SD15 = next(backbone for backbone in BACKBONES if backbone.name == "Stable Diffusion 1.5")


def test_linear_layer() -> None:
    layer = nn.Linear(48, 32, device="meta")
    assert count_flops(lambda: layer(torch.empty(7, 48, device="meta"))) == 2 * 48 * 32 * 7


def test_convolution() -> None:
    layer = nn.Conv2d(3, 8, 3, stride=2, padding=1, device="meta")
    assert count_flops(lambda: layer(torch.empty(2, 3, 16, 16, device="meta"))) == 2 * (3 * 3 * 3) * 8 * (2 * 8 * 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention(dtype: torch.dtype) -> None:
    """Two matrix products: queries by keys, weights by values."""
    heads, queries, keys, width = 4, 10, 6, 16
    query = torch.empty(1, heads, queries, width, device="meta", dtype=dtype)
    key = torch.empty(1, heads, keys, width, device="meta", dtype=dtype)
    counted = count_flops(lambda: scaled_dot_product_attention(query, key, key))
    assert counted == 2 * (2 * heads * queries * keys * width)


def test_backward_is_counted() -> None:
    """Gradients of the input and of the weights are one more product each."""
    layer = nn.Linear(48, 32, device="meta")
    rows = torch.empty(7, 48, device="meta", requires_grad=True)
    assert count_flops(lambda: layer(rows).sum().backward()) == 3 * (2 * 48 * 32 * 7)


def test_real_and_meta_tensors_count_alike() -> None:
    network = flops.redirector_of(SD15)
    real = Redirector(network.config).eval()
    embeds, x0 = torch.zeros(1, 77, 768), torch.zeros(1, 4, 8, 8)
    with torch.no_grad():
        counted = count_flops(lambda: network(x0.to("meta"), torch.zeros(1, device="meta"), embeds.to("meta")))
        assert counted == count_flops(lambda: real(x0, torch.zeros(1), embeds)) > 0


@pytest.mark.parametrize("part", [SD15.encoders[0], SD15.vae], ids=lambda part: part.kind)
def test_published_configurations_have_the_known_size(part: flops.Part) -> None:
    parameters, counted = flops.part_cost(part)
    assert parameters == pytest.approx(part.known, rel=flops.TOLERANCE)
    assert counted > 0


def test_every_backbone_names_an_existing_pipeline_and_its_steps() -> None:
    assert len({backbone.name for backbone in BACKBONES}) == len(BACKBONES)
    assert all(backbone.default("num_inference_steps") >= 20 for backbone in BACKBONES)


def cost_of(backbone: Backbone) -> Cost:
    guard = {"prompt": 2, "redirection": 3, "image": 5, "frame": 5, "joint": 7, "fit": 11, "parameters": 13}
    sizes = tuple(int(part.known) for part in backbone.parts)
    return Cost(backbone=backbone, parameters=sizes, row=1000, encode=100, decode=10, guard=guard)


def test_arithmetic_of_a_picture_and_of_a_training() -> None:
    cost = cost_of(replace(SD15, rollouts=6, held_out_rollouts=4, rollout_steps=3))
    assert cost.image == 2 * (50 * 1000 + 100) + 10
    assert cost.guard_image == 2 + 3 + 50 * 5
    assert cost.rollouts == 10 * 3 * 2 * 1000
    assert cost.rollout_bytes == 10 * 3 * (4 * 64 * 64) * 2
    assert cost.hours(1e12) == pytest.approx(cost.training / (1e12 * flops.UTILISATION) / 3600)


def test_an_unconfirmed_configuration_is_left_out_of_the_page() -> None:
    good, bad = cost_of(BACKBONES[-1]), cost_of(SD15)
    bad = replace(bad, parameters=(int(bad.parameters[0] * 1.05), *bad.parameters[1:]))
    text = flops.page([good, bad])
    assert "not confirmed: Stable Diffusion 1.5." in text
    assert "| Stable Diffusion 1.5 | 512 px |" not in text
    assert f"| {good.backbone.name} | {good.backbone.size} |" in text


def test_redirector_is_counted_per_row() -> None:
    counted = flops.redirector_cost(SD15)
    forward = sum(counted[name] for name in ("prompt", "redirection", "frame", "joint"))
    assert 2.5 * forward < counted["fit"] <= 3 * forward
    assert 1e6 < counted["parameters"] < 3e6
