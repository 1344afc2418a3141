"""Latents with a share of noise that their own values decide: still noise, the same again, and no more of what was optimised."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saferedir.pipelines.latent_prior import prior_test
from saferedir.pipelines.latent_refresh import digest_noise, replace_share


def noise(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def refreshed(latents: Tensor, share: float) -> Tensor:
    return replace_share(latents, digest_noise(latents), share)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_honest_noise_stays_honest_noise(share: float) -> None:
    """p-values of the test against the prior are at most as often small as they say, as before."""
    p_values = prior_test(refreshed(noise(2_000, 4, 16, 16), share)).p_value
    for limit in (0.01, 0.1):
        assert float((p_values < limit).double().mean()) < limit + 4 * (limit / 2_000) ** 0.5


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.01, 1.0), scale=st.floats(0.2, 3.0))
def test_a_share_of_the_energy_is_kept_and_the_rest_is_that_of_noise(share: float, scale: float) -> None:
    """|x'|^2 / n = (1 - s) |x|^2 / n + s, and <x, x'> = sqrt(1 - s) |x|^2, to the deviation of n = 16,384 products."""
    latents = scale * noise(1, 4, 64, 64, seed=3)
    mixed, n = refreshed(latents, share), latents.numel()
    before = float(latents.square().mean())
    assert float(mixed.square().mean()) == pytest.approx((1 - share) * before + share, abs=5 * (1 + before) / n**0.5)
    assert float((latents * mixed).mean()) == pytest.approx((1 - share) ** 0.5 * before, abs=5 * scale / n**0.5)


def test_the_same_latents_give_the_same_noise_in_a_batch_as_alone() -> None:
    latents = noise(3, 4, 8, 8)
    together = digest_noise(latents)
    assert torch.equal(together, digest_noise(latents.clone()))
    for order in ([0], [2], [2, 0]):
        assert torch.equal(digest_noise(latents[order]), together[order])
    assert torch.equal(
        digest_noise(latents.transpose(2, 3).contiguous().transpose(2, 3)), together
    )  # of another layout
    assert torch.equal(digest_noise(latents.half()), digest_noise(latents.half().float()))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    digest_noise(latents)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_last_bit_gives_noise_that_has_nothing_to_do_with_it() -> None:
    latents = noise(1, 4, 64, 64)
    other = latents.clone()
    other[0, 0, 0, 0] = torch.nextafter(other[0, 0, 0, 0], torch.tensor(10.0))
    first, second = digest_noise(latents), digest_noise(other)
    for one, two in ((first, second), (first, latents), (second, latents)):
        assert abs(float((one * two).mean())) < 5 / latents.numel() ** 0.5


def test_a_share_of_one_leaves_the_noise_alone_and_of_nothing_the_latents() -> None:
    latents = noise(2, 4, 8, 8)
    assert torch.equal(refreshed(latents, 1.0), digest_noise(latents))
    assert torch.equal(refreshed(latents, 0.0), latents)
    assert refreshed(latents.half(), 0.5).dtype == torch.float16


def test_what_is_mixed_has_the_gradient_of_the_share_that_is_kept() -> None:
    latents = noise(1, 4, 8, 8).requires_grad_(True)
    replace_share(latents, noise(1, 4, 8, 8, seed=1), 0.19).sum().backward()
    torch.testing.assert_close(latents.grad, torch.full_like(latents, 0.9))
