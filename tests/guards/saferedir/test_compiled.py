"""Guard and denoiser as one graph: `torch.compile` takes a guarded step whole, and its values are those of the step as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.conftest import make_pipeline
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from saferedir.guards.saferedir.network import Redirector, RedirectorConfig, redirect
from saferedir.guards.saferedir.rows import strongest
from saferedir.pipelines.encoding import encode_prompts


def guarded_step(unet: Any, network: Redirector, limits: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    """All that a guarded step computes: prompt verdict, redirection, guided prediction, denoised estimate, image verdict."""

    def step(x: Tensor, t: Tensor, cond: Tensor, uncond: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        scores = network.prompt_logits(cond)
        chosen, weight = strongest((scores >= limits).float(), scores - limits, 2)
        redirection = network.redirection(cond, chosen=chosen)
        prompt = redirect(cond, redirection, weight, 1.0, network.config.max_shift, exempt_bos=True)
        pred = unet(torch.cat([x, x]), t, torch.cat([uncond, prompt])).sample
        without, with_prompt = pred.chunk(2)
        pred = without + 4.0 * (with_prompt - without)
        x0 = (x - sigma * pred) / alpha
        return pred, x0, scores, network.image_logits(x0, t) >= limits, redirection.finite

    return step


@pytest.mark.parametrize("is_firing", [False, True])
def test_a_guarded_step_is_one_graph(is_firing: bool) -> None:
    pipe: Any = make_pipeline()
    config = RedirectorConfig(
        prompt_dim=pipe.unet.config.cross_attention_dim, width=16, heads=2, hidden=16, latent_widths=(8, 8),
        latent_strides=(1, 2), rank=8, t_dim=8, concepts=("star", "ring", "fox"), row_heads=True, has_joint=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Redirector(config).eval().requires_grad_(False)
        x, embeds = torch.randn(2, 4, 8, 8), encode_prompts(pipe, ["a x", "b o", "", ""]).prompt
    given = (x, torch.tensor(500.0), embeds[:2], embeds[2:], torch.tensor(0.8), torch.tensor(0.6))
    step = guarded_step(pipe.unet, network, torch.full((3,), -1e3 if is_firing else 1e3))
    counter = CompileCounter()
    torch._dynamo.reset()
    with torch.no_grad():
        plain = step(*given)
        compiled = torch.compile(step, backend=counter, fullgraph=True)
        for _ in range(2):
            for mine, theirs in zip(compiled(*given), plain, strict=True):
                assert torch.equal(mine, theirs)
    assert counter.frame_count == 1  # no break, and not compiled again
    assert bool(plain[3].all()) == is_firing
