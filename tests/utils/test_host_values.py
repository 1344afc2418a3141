"""Values that the host knows of tensors on another device; the device of these tests has no values at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saferedir.utils.host_values import knowing_host_values

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])


def lengths(mask: Tensor) -> list[int]:
    return [int(mask.sum(-1).max()), *mask.bool().sum(1).tolist(), bool(mask.all()), bool((mask[:, :2] == 1).all())]


def test_what_is_computed_of_a_known_mask_is_read_on_the_host() -> None:
    with knowing_host_values():
        mask = MASK.to("meta")
        assert lengths(mask) == lengths(MASK)
        assert mask.nonzero().shape == (5, 2)
        more = torch.stack([torch.cat([row, row.new_zeros(2)]) for row in mask])
        assert more.sum().item() == 5
        assert torch.equal(more.cpu()[:, :4], MASK)
        ones = torch.ones(3, dtype=torch.long, device="meta")
        assert ones.all()


def test_rows_of_embeddings_are_taken_by_a_known_mask() -> None:
    embeds = torch.zeros(2, 4, 5, device="meta")
    with knowing_host_values():
        mask = MASK.to("meta")
        assert embeds[mask.bool()].shape == (5, 5)
        embeds[mask == 0] = torch.zeros_like(embeds[mask == 0])
        assert embeds[:, : mask.sum(-1).max() + 1].shape == (2, 4, 5)
        assert embeds[0, : mask[1].sum()].shape == (2, 5)


def forget(mask: Tensor) -> None:
    mask[0, 0] = 0


def forget_base(mask: Tensor) -> None:
    mask._base[:] = 0  # type: ignore[index]


@pytest.mark.parametrize("write", [forget, forget_base])
def test_what_was_written_to_is_not_known(write: Any) -> None:
    with knowing_host_values():
        mask = MASK.to("meta")[:]
        assert mask.sum().item() == 5
        write(mask)
        with pytest.raises((RuntimeError, NotImplementedError)):
            mask.sum().item()


def test_a_source_that_is_written_to_later_is_not_taken() -> None:
    source = MASK.clone()
    with knowing_host_values():
        mask = source.to("meta")
        source[0, 0] = 7
        with pytest.raises((RuntimeError, NotImplementedError)):
            mask.sum().item()


def test_chance_and_numbers_with_fractions_are_not_followed() -> None:
    with knowing_host_values():
        state = torch.get_rng_state()
        values = torch.randint(0, 2, (3,), device="meta")
        assert torch.equal(torch.get_rng_state(), state)
        for unknown in (values.sum(), torch.ones(2).to("meta").sum()):
            with pytest.raises((RuntimeError, NotImplementedError)):
                unknown.item()


def test_nothing_changes_on_the_cpu_nor_outside() -> None:
    with knowing_host_values():
        assert lengths(MASK) == [3, 3, 2, False, True]
        mask = MASK.to("meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        mask.sum().item()
