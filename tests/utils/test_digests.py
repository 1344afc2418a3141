"""Checksums of tensors: the bytes that records on disk were made of, form by form."""

from __future__ import annotations

import hashlib
import struct
from typing import get_args

import pytest
import torch
from torch import Tensor

from saferedir.utils.digests import Form, add_values

TENSORS = {"b": torch.tensor([[1.0, -2.5]]), "a": torch.tensor(3, dtype=torch.int16), "c": torch.zeros(0)}


def digest(tensors: dict[str, Tensor], form: Form) -> str:
    made = hashlib.sha256(b"before")
    add_values(made, tensors, form)
    return made.hexdigest()


@pytest.mark.parametrize(
    ("form", "written"),
    [
        ("values", b"a" + struct.pack("<f", 3.0) + b"b" + struct.pack("<2f", 1.0, -2.5) + b"c"),
        ("bytes", b"a" + struct.pack("<h", 3) + b"b" + struct.pack("<2f", 1.0, -2.5) + b"c"),
        (
            "typed",
            b"a()torch.int16" + struct.pack("<h", 3)
            + b"b(1, 2)torch.float32" + struct.pack("<2f", 1.0, -2.5) + b"c(0,)torch.float32",
        ),
    ],
)  # fmt: skip
def test_each_form_is_what_it_was(form: Form, written: bytes) -> None:
    assert digest(TENSORS, form) == hashlib.sha256(b"before" + written).hexdigest()


def test_forms_differ_in_what_counts() -> None:
    half, flat = {**TENSORS, "b": TENSORS["b"].half()}, {**TENSORS, "b": TENSORS["b"].flatten()}
    strided = {**TENSORS, "b": torch.tensor([[1.0, 7.0, -2.5]])[:, ::2]}
    same = {
        form: [digest(other, form) == digest(TENSORS, form) for other in (half, flat, strided)]
        for form in get_args(Form)
    }
    assert same == {
        "values": [True, True, True],
        "bytes": [False, True, True],
        "typed": [False, False, True],
    }
