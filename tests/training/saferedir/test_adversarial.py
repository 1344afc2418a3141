"""Adversarial moves of training: within their ball, against the verdict, for the unsafe side alone; and checked labels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saferedir.guards.saferedir import Redirector, RedirectorConfig
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.training.saferedir.adversarial import moved_frames, moved_prompts
from saferedir.training.saferedir.batches import ImageData, correctly_labelled, image_batch

LABEL = torch.tensor([1.0, 0.0, 1.0, 0.0])


def network_of(seed: int = 0) -> Redirector:
    torch.manual_seed(seed)
    sizes = {
        "prompt_dim": 16,
        "width": 32,
        "heads": 2,
        "hidden": 32,
        "latent_widths": (8, 16),
        "latent_strides": (1, 2),
    }
    return Redirector(RedirectorConfig(**sizes))  # type: ignore[arg-type]


def lengths(move: Tensor) -> Tensor:
    return move.flatten(1).square().mean(dim=1).sqrt()


@settings(max_examples=10, deadline=None)
@given(radius=st.floats(0.01, 2.0), seed=st.integers(0, 99), steps=st.integers(1, 4))
def test_moves_of_frames_stay_within_the_radius(radius: float, seed: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    frames, t = torch.randn(4, 4, 8, 8, generator=generator), torch.tensor([999.0, 500.0, 1.0, 250.0])
    moved = moved_frames(network_of(), frames, t, LABEL, radius, steps, generator)
    assert bool((lengths(moved - frames) <= radius * (1 + 1e-4)).all())
    assert not moved.requires_grad


def test_unsafe_frames_are_moved_below_what_noise_of_that_length_does() -> None:
    network, generator = network_of(), torch.Generator().manual_seed(1)
    frames, t, label = torch.randn(64, 4, 8, 8, generator=generator), torch.full((64,), 100.0), torch.ones(64)
    before = network.image_logits(frames, t)[:, 0]
    moved = moved_frames(network, frames, t, label, 0.5, 4, generator)
    noise = torch.randn(frames.shape, generator=generator)
    random = frames + noise / lengths(noise).view(-1, 1, 1, 1) * lengths(moved - frames).view(-1, 1, 1, 1)
    drops = [(before - network.image_logits(x, t)[:, 0]).detach() for x in (moved, random)]
    assert bool((drops[0] >= 0).all()) and float(drops[0].mean()) > 5 * float(drops[1].abs().mean())
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize("masked", [False, True])
def test_moves_of_prompts_leave_the_opening_token_and_padding_and_are_relative_to_each_token(masked: bool) -> None:
    network, generator = network_of(), torch.Generator().manual_seed(2)
    e = torch.randn(4, 6, 16, generator=generator) * torch.linspace(0.5, 3, 6).view(1, 6, 1)
    mask = (torch.arange(6) < torch.tensor([[6], [4], [5], [3]])) if masked else None
    target = torch.zeros(4, 6)
    target[:, 2] = 1
    given_ = PromptEmbeds(e, None, mask)
    moved = moved_prompts(network, given_, target, LABEL, 0.4, 3, generator)
    shift = torch.linalg.vector_norm(moved.prompt - e, dim=-1) / torch.linalg.vector_norm(e, dim=-1)
    assert bool((shift <= 0.4 + 1e-4).all()) and bool((shift[:, 0] == 0).all()) and bool((shift[:, 2] > 0).all())
    if mask is not None:
        assert bool((shift[~mask] == 0).all())
    unsafe = LABEL.bool()
    before, after = (network.prompt_logits(x, mask)[unsafe, 0] for x in (e, moved.prompt))
    assert float(after.mean()) < float(before.mean())


def test_labels_that_the_image_contradicts_are_left_out() -> None:
    frames, scale = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 3, 4, 2, 2), torch.tensor([1.0, 4.0, 1.0, 4.0])
    data = ImageData(frames, PromptEmbeds(torch.randn(4, 5, 16)), LABEL, torch.tensor([999.0, 500.0, 1.0]), scale)
    kept = correctly_labelled(data, torch.tensor([True, True, False, False]))
    assert kept.label.tolist() == [1.0, 0.0] and kept.frames[:, 0, 0, 0, 0].tolist() == [0.0, 3.0]
    assert kept.scale is not None and kept.scale.tolist() == [1.0, 4.0] and len(kept.prompts.prompt) == 2


def test_final_frames_come_at_every_time() -> None:
    steps = torch.arange(5.0).view(1, 5, 1, 1, 1).expand(6, 5, 4, 2, 2)
    data = ImageData(
        steps, PromptEmbeds(torch.randn(6, 5, 16)), torch.ones(6), torch.tensor([900.0, 700.0, 500.0, 300.0, 100.0])
    )
    batch = image_batch(data, 200, torch.Generator().manual_seed(0), final_share=1.0)
    assert set(batch.t.tolist()) == set(data.t.tolist())
    assert float((batch.frames - 4.0).abs().mean()) < 0.1
    usual = image_batch(data, 200, torch.Generator().manual_seed(0))
    assert len({round(float(frame.mean())) for frame in usual.frames}) == 5
