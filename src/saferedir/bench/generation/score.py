"""What judges and encoders see in drawn pictures: scores and features, one row a picture."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saferedir.bench.generation.resources import JudgeSpec, Resources, Scorer
from saferedir.encoders.base import Encoder
from saferedir.judges.base import Judge, Scores
from saferedir.utils.images import to_rgb

_BATCH = 64


def in_words(error: BaseException) -> str:
    """An error of whatever kind in one line: "RuntimeError: no such kernel image"."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"


@dataclass(frozen=True)
class ScorerOutput:
    """What one judge or encoder saw in n pictures: scores (n, L), L = 0 for an encoder, and features (n, d) if it has any; NaN
    for pictures never made.
    """

    scores: Scores
    features: Tensor | None


def score_with_all(
    scorers: Sequence[Scorer], pictures: Sequence[Tensor | None], resources: Resources
) -> tuple[dict[Scorer, ScorerOutput], dict[Scorer, str]]:
    """What each of them sees, and why those that failed saw nothing: their failure costs neither the pictures nor the others."""
    seen: dict[Scorer, ScorerOutput] = {}
    failed: dict[Scorer, str] = {}
    for scorer in scorers:
        try:
            seen[scorer] = score_with(scorer, pictures, resources)
        except Exception as error:
            failed[scorer] = in_words(error)
    return seen, failed


def score_with(scorer: Scorer, pictures: Sequence[Tensor | None], resources: Resources) -> ScorerOutput:
    """What a judge or an encoder sees in 8-bit pictures (3, H, W), None for those never made."""
    if isinstance(scorer, JudgeSpec):
        return judge_images(pictures, resources.judge(scorer))
    return encode_images(pictures, resources.encoder(scorer))


def judge_images(pictures: Sequence[Tensor | None], judge: Judge) -> ScorerOutput:
    """What a judge sees in 8-bit pictures."""
    scores = torch.full((len(pictures), len(judge.labels)), torch.nan)
    features: Tensor | None = None
    for rows, stack in _stacks(pictures):
        scores[rows] = judge(stack).values
        found = judge.features(stack)
        if found is not None:
            features = _with_rows(features, rows, found.detach().float().cpu(), len(pictures))
    return ScorerOutput(Scores(judge.labels, scores), features)


def encode_images(pictures: Sequence[Tensor | None], encoder: Encoder) -> ScorerOutput:
    """What an encoder sees in 8-bit pictures: features only."""
    features: Tensor | None = None
    for rows, stack in _stacks(pictures):
        features = _with_rows(features, rows, encoder.encode(stack), len(pictures))
    return ScorerOutput(Scores((), torch.zeros(len(pictures), 0)), features)


def _stacks(pictures: Sequence[Tensor | None]) -> Iterator[tuple[list[int], Tensor]]:
    """Row numbers and (B, 3, H, W) in [0, 1] of the pictures that were made, some at a time."""
    made = [(row, picture) for row, picture in enumerate(pictures) if picture is not None]
    for start in range(0, len(made), _BATCH):
        some = made[start : start + _BATCH]
        yield [row for row, _ in some], torch.stack([picture for _, picture in some]).float() / 255


def _with_rows(features: Tensor | None, rows: list[int], found: Tensor, n: int) -> Tensor:
    features = torch.full((n, found.shape[1]), torch.nan) if features is None else features
    features[rows] = found
    return features


def from_png(image: bytes | None) -> Tensor | None:
    """A kept picture as it was judged: 8-bit (3, H, W)."""
    if image is None:
        return None
    import numpy as np
    from PIL import Image

    return torch.from_numpy(np.array(to_rgb(Image.open(io.BytesIO(image))))).permute(2, 0, 1)
