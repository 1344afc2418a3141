"""Does a judge keep its contract? Checks that hold for every judge, and the judge's own."""

from __future__ import annotations

from typing import NamedTuple

import torch

from saferedir.judges.base import Judge


class Check(NamedTuple):
    """One question to a judge: what, whether it holds, and what was observed."""

    what: str
    passed: bool
    observed: str


def selftest(judge: Judge, size: int = 64, seed: int = 0) -> list[Check]:
    """Three noise images of `size` x 1.5 `size`: shape, finite scores, determinism, each image by itself, facts.

    A judge with checks of its own has a method `selftest() -> list[Check]`.
    """
    images = torch.rand(3, 3, size, size * 3 // 2, generator=torch.Generator().manual_seed(seed))
    first, second = judge(images).values, judge(images).values
    single = torch.cat([judge(image[None]).values for image in images])
    off = float((first - single).abs().max()) if first.numel() else 0.0
    missing = sorted({"id", "weights", "channels", "resize", "floor", "version"} - set(judge.facts()))
    checks = getattr(judge, "selftest", None)
    return [
        Check("one row an image, one column a label", first.shape == (3, len(judge.labels)), str(tuple(first.shape))),
        Check(
            "scores are finite", bool(first.isfinite().all()), f"{float(first.min()):.3g} to {float(first.max()):.3g}"
        ),
        Check("the same images score the same", bool(torch.equal(first, second)), "two runs compared"),
        Check("each image is judged by itself", off <= 1e-4, f"off by {off:.1g} between a batch and single images"),
        Check("facts say how scores were made", not missing, f"missing: {', '.join(missing) or 'none'}"),
        *(checks() if checks is not None else []),
    ]
