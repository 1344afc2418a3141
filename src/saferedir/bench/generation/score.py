"""Scoring: what judges and encoders make of generated images: scores and features, one row an image."""

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
    """Scores and features of one judge or encoder for n images: scores (n, L), L = 0 for an encoder, and features (n, d) if it
    has any; NaN for images never made.
    """

    scores: Scores
    features: Tensor | None


def score_with_all(
    scorers: Sequence[Scorer], images: Sequence[Tensor | None], resources: Resources
) -> tuple[dict[Scorer, ScorerOutput], dict[Scorer, str]]:
    """The output of each of them, and why those that failed have none: their failure costs neither the images nor the others."""
    outputs: dict[Scorer, ScorerOutput] = {}
    failed: dict[Scorer, str] = {}
    for scorer in scorers:
        try:
            outputs[scorer] = score_with(scorer, images, resources)
        except Exception as error:
            failed[scorer] = in_words(error)
    return outputs, failed


def score_with(scorer: Scorer, images: Sequence[Tensor | None], resources: Resources) -> ScorerOutput:
    """Output of a judge or an encoder for 8-bit images (3, H, W), None for those never made."""
    if isinstance(scorer, JudgeSpec):
        return judge_images(images, resources.judge(scorer))
    return encode_images(images, resources.encoder(scorer))


def judge_images(images: Sequence[Tensor | None], judge: Judge) -> ScorerOutput:
    """Output of a judge for 8-bit images."""
    scores = torch.full((len(images), len(judge.labels)), torch.nan)
    features: Tensor | None = None
    for rows, stack in _stacks(images):
        scores[rows] = judge(stack).values
        vectors = judge.features(stack)
        if vectors is not None:
            features = _with_rows(features, rows, vectors.detach().float().cpu(), len(images))
    return ScorerOutput(Scores(judge.labels, scores), features)


def encode_images(images: Sequence[Tensor | None], encoder: Encoder) -> ScorerOutput:
    """Output of an encoder for 8-bit images: features only."""
    features: Tensor | None = None
    for rows, stack in _stacks(images):
        features = _with_rows(features, rows, encoder.encode(stack), len(images))
    return ScorerOutput(Scores((), torch.zeros(len(images), 0)), features)


def _stacks(images: Sequence[Tensor | None]) -> Iterator[tuple[list[int], Tensor]]:
    """Row numbers and (B, 3, H, W) in [0, 1] of the images that were made, some at a time."""
    made = [(row, image) for row, image in enumerate(images) if image is not None]
    for start in range(0, len(made), _BATCH):
        some = made[start : start + _BATCH]
        yield [row for row, _ in some], torch.stack([image for _, image in some]).float() / 255


def _with_rows(features: Tensor | None, rows: list[int], vectors: Tensor, n: int) -> Tensor:
    features = torch.full((n, vectors.shape[1]), torch.nan) if features is None else features
    features[rows] = vectors
    return features


def from_png(image: bytes | None) -> Tensor | None:
    """A kept image as it was judged: 8-bit (3, H, W)."""
    if image is None:
        return None
    import numpy as np
    from PIL import Image

    return torch.from_numpy(np.array(to_rgb(Image.open(io.BytesIO(image))))).permute(2, 0, 1)
