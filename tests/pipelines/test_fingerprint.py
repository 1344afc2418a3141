"""The fingerprint of a backbone at real sizes, under other default dtypes and over other storages of the same weights."""

from __future__ import annotations

import itertools
import math
import random
import struct
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_pipelines import PIPELINES
from torch import Tensor, nn

import saferedir as sr
from saferedir.guards.config import GuardConfig
from saferedir.pipelines.fingerprint import _sample_places, _weights_hashes, backbone_fingerprint, compare_backbone


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _places_by_hand(size: int) -> list[int]:
    """What a float32 range of 8 values does: from both ends towards the middle, each value rounded once."""
    count = min(8, size)
    if count == 1:
        return [0]
    end = _float32(size - 1)
    step = _float32(end / (count - 1))
    exact = [
        Fraction(step) * k if k < count // 2 else Fraction(end) - Fraction(step) * (count - 1 - k) for k in range(count)
    ]
    return [min(math.floor(_float32(float(value))), size - 1) for value in exact]


#: sizes of parameters of published checkpoints, the first below 2^24
REAL_SIZES = [
    *(320 * 4 * 9, 77 * 768, 1280 * 1280, 10240 * 1280, 2**24 - 1, 2**24, 2**24 + 1),
    *(
        49408 * 768,
        49408 * 1024,
        49408 * 1280,
        1280 * 2560 * 9,
        21504 * 3072,
        32128 * 4096,
        256000 * 2304,
        256384 * 4096,
    ),
]


@pytest.fixture(params=[torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def test_the_places_of_samples_are_those_of_a_float32_range(default_dtype: torch.dtype) -> None:
    """For sizes below 2^24, where every fingerprint in use was made, and above, where the end is held."""
    numbers = random.Random(0)
    small = [*range(1, 300), *(numbers.randrange(300, 2**24) for _ in range(1500))]
    large = [numbers.randrange(2**24, 2**32) for _ in range(500)]
    with torch.device("meta"):  # a default device must not matter either
        for size in (*small, *large, *REAL_SIZES):
            assert _sample_places(size, 8).tolist() == _places_by_hand(size), size


def test_places_lie_inside_and_apart_and_reach_from_end_to_end() -> None:
    for size in REAL_SIZES:
        places = _sample_places(size, 8).tolist()
        assert places[0] == 0 and places[-1] >= (size - 1) * (1 - 2**-23) and max(places) < size
        assert all(first < second for first, second in itertools.pairwise(places))


def test_the_default_dtype_leaves_a_fingerprint_as_it_is(default_dtype: torch.dtype) -> None:
    pipe = sr.load_pipeline("pictoworld")
    torch.set_default_dtype(torch.float32)
    expected = backbone_fingerprint(pipe)
    torch.set_default_dtype(default_dtype)
    assert backbone_fingerprint(pipe) == expected


def test_a_parameter_of_real_size_is_hashed_by_its_values() -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(49408, 768, dtype=torch.bfloat16), requires_grad=False)
    (before,) = _weights_hashes([module])
    module.weight[-1, -1] = 1.0
    assert before is not None and _weights_hashes([module])[0] not in (None, before)


class Stored(Tensor):
    """What quantisers make of a weight: a subclass that holds something else and refuses what it does not know, as `view`."""

    held: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Stored:
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype, device=values.device)

    def __init__(self, values: Tensor) -> None:
        self.held = values

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].held)
        raise NotImplementedError(f"Stored dispatch: attempting to run {func}")


def _bound(pipe: Any) -> sr.Guard[Any]:
    class Watcher(sr.Guard[GuardConfig]):
        method = "watcher"
        config_class = GuardConfig

    return Watcher(GuardConfig(concept="star", backbone=backbone_fingerprint(pipe)))


def _subclass(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(Stored(layer.weight.detach()), requires_grad=False)


def _float8(module: Any) -> None:
    module.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


@pytest.mark.parametrize("store", [_subclass, _float8])
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_another_storage_of_the_same_weights_is_not_another_checkpoint(name: str, store: Any) -> None:
    """Neither a crash nor the advice to recalibrate; the architecture is compared all the same."""
    pipe = PIPELINES[name].build()
    guard = _bound(pipe)
    part = "unet" if name == "sd" else "transformer"
    store(getattr(pipe, part))
    found = backbone_fingerprint(pipe)
    assert found["weights"][part] is None
    assert found["architecture"] == guard.config.backbone["architecture"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with sr.attach(pipe, guard):
            pass
    assert compare_backbone(found, {**found, "weights": guard.config.backbone["weights"]}) == ([], [])


def test_a_guard_of_stored_weights_fits_the_plain_ones() -> None:
    pipe = PIPELINES["sd"].build()
    plain = backbone_fingerprint(pipe)
    _subclass(pipe.unet)
    assert compare_backbone(backbone_fingerprint(pipe), plain) == ([], [])


def test_weights_offloaded_to_disk_are_not_read_from_memory(tmp_path: Path) -> None:
    """Group offload leaves uninitialised tensors behind, which would read as another checkpoint."""
    pipe = PIPELINES["sd"].build()
    pipe.unet.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="leaf_level", offload_to_disk_path=str(tmp_path)
    )
    assert backbone_fingerprint(pipe)["weights"]["unet"] is None
