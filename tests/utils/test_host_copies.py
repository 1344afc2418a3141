"""Copies on the CPU of tensors on a device, for which PyTorch's device without values stands: reading it is an error."""

from __future__ import annotations

import torch

from saferedir.utils import host_copies


def test_a_copy_is_known_of_a_tensor_and_of_its_views_until_it_is_written_to() -> None:
    values, copy = torch.empty(2, 3, device="meta"), torch.arange(6.0).view(2, 3)
    assert host_copies.known(values) is None
    host_copies.keep(values, copy)
    assert torch.equal(host_copies.on_host(values), copy)
    rows = values[1:].expand(4, 3)[None].flatten(0, 1)
    assert torch.equal(host_copies.on_host(rows), copy[1:].expand(4, 3))
    assert torch.equal(host_copies.on_host(values.T[1:]), copy.T[1:])
    assert host_copies.known(values + 1) is None
    assert host_copies.known(values.view(torch.int32)) is None
    values[0] = 2
    assert host_copies.known(values) is None and host_copies.known(rows) is None


def test_what_is_on_the_cpu_is_its_own_copy() -> None:
    values = torch.ones(2)
    assert host_copies.on_host(values) is values
    assert host_copies.read_once([values], values + 1)[0].tolist() == [2.0, 2.0]
