"""Packed latents: there and back, and into a sequence that holds more than latents."""

from __future__ import annotations

import diffusers
import pytest
import torch
from tests.tiny.newer import make_ltx

from saferedir.errors import GuardError
from saferedir.pipelines.packing import FLUX2_PACKING, FLUX_PACKING, LTX_IMAGE_PACKING, LTX_PACKING, Grid, Packing

#: packing, its grid, shape of the latents, tokens of other things
CASES = {
    "flux": (FLUX_PACKING, (2, 3), (4, 4, 6), 5),
    "flux-2": (FLUX2_PACKING, (2, 3), (8, 2, 3), 5),
    "ltx": (LTX_PACKING, (3, 2, 4), (8, 3, 2, 4), 0),
    "ltx-image": (LTX_IMAGE_PACKING, (3, 2, 4), (8, 2, 2, 4), 8),
}


@pytest.mark.parametrize("name", CASES)
def test_latents_go_into_a_sequence_and_nothing_else_moves(name: str) -> None:
    packing: Packing
    grid: Grid
    packing, grid, shape, others = CASES[name]
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    tokens = packing.pack(latents)
    before = torch.zeros(2, tokens.shape[1] + others, tokens.shape[2])
    after = packing.into(before, latents)
    assert torch.equal(packing.unpack(after, grid), latents)
    assert after.shape == before.shape and not before.any()
    assert int((after != 0).any(2).sum()) == 2 * tokens.shape[1]


def test_ltx_video_is_packed_as_the_pipeline_packs_it() -> None:
    latents = torch.randn(2, 8, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    own = make_ltx(diffusers.LTXPipeline)._pack_latents(latents)
    assert torch.equal(LTX_PACKING.pack(latents), own)
    assert torch.equal(LTX_PACKING.unpack(own, (3, 2, 4)), latents)
    assert torch.equal(LTX_IMAGE_PACKING.unpack(own, (3, 2, 4)), latents[:, :, 1:])


def test_tokens_that_do_not_fill_a_video_are_refused() -> None:
    with pytest.raises(GuardError, match="23 tokens do not fill a grid of 3 x 2 x 4"):
        LTX_PACKING.unpack(torch.zeros(1, 23, 8), (3, 2, 4))
    with pytest.raises(GuardError, match="ask for more frames"):
        LTX_IMAGE_PACKING.unpack(torch.zeros(1, 8, 8), (1, 2, 4))
