"""Accelerators of other projects (`make test-accelerators` installs them apart): a guard acts beside them as without them.

Where a package is missing its tests are skipped; docs/pipelines.md says which versions were measured, and what.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from tests.contract.feature import acts, denoiser_of, guarded, same
from tests.contract.guards import GUARDS, PROMPT
from tests.contract.speed_features import FIGURES, check_cache
from tests.seam.cache_kinds import PACKAGES
from tests.tiny_pipelines import PIPELINES, run

import saferedir as sr


@pytest.mark.parametrize("guard", ["saferedir", "duo", "sld", "dual_latent_r2"])
@pytest.mark.parametrize("case", ["sd", "sdxl"])
@pytest.mark.parametrize("name", list(PACKAGES))
def test_caches_of_unets(name: str, case: str, guard: str) -> None:
    pytest.importorskip(PACKAGES[name])
    check_cache(name)(PIPELINES[case], GUARDS[guard])
    print(name, case, guard, FIGURES[name, PIPELINES[case].family, guard])


def with_torchao(module: Any) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(module, Int8WeightOnlyConfig())


def with_quanto(module: Any) -> None:
    pytest.importorskip("optimum.quanto")
    from optimum.quanto import freeze, qint8, quantize

    quantize(module, weights=qint8)
    freeze(module)


@pytest.mark.parametrize("guard", ["saferedir", "sld", "duo"])
@pytest.mark.parametrize("case", ["sd", "flux"])
@pytest.mark.parametrize("quantise", [with_torchao, with_quanto])
@pytest.mark.filterwarnings("ignore")
def test_quantised_weights(quantise: Callable[[Any], None], case: str, guard: str) -> None:
    """Quantised first or attached first: the guard acts, and the images agree; or one sentence says what to do."""
    row, kind = PIPELINES[case], GUARDS[guard]
    if kind.lacks(row):
        pytest.skip(kind.lacks(row))
    pipe = row.build()
    quantise(denoiser_of(row, pipe))
    plain = run(row, pipe, PROMPT)
    try:
        first, _ = guarded(row, kind, pipe=pipe)
    except sr.GuardError as refusal:
        print(quantise.__name__, case, guard, "refused:", refusal)
        assert kind.kind == "weights", refusal
        return
    acts(kind, row, first, plain, "quantised, then attached")
    same(run(row, pipe, PROMPT), plain, "after detaching")
    if kind.kind == "weights":
        return
    pipe = row.build()
    with warnings.catch_warnings(), sr.attach(pipe, kind.make(pipe, row)):
        quantise(denoiser_of(row, pipe))
        same(run(row, pipe, PROMPT), first, "attached, then quantised")
