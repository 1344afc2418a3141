"""Numbers from vectors: how well a cell's images fit their prompts, and how far they are from the bare model's or a reference.

Pure. Who encodes: generation/score.py and storage/embeddings.py. The metrics' names: `CellRecord.measured`.
A blocked image has no vector: it is left out, and from paired numbers also the bare model's of the same prompt and seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from saferedir.bench.metric_keys import REFERENCE, MetricKey
from saferedir.bench.planning.cell_spec import MIN_IMAGES
from saferedir.bench.storage.embeddings import CellEmbeddings, TextEmbeddings
from saferedir.errors import BenchError, MetricError
from saferedir.metrics import (
    Mean,
    bootstrap_mean,
    clip_score,
    csdr,
    distance_with_interval,
    feature_drift,
    paired_difference,
    prompt_groups,
)
from saferedir.metrics.jackknife import Distance


def encoder_metrics(
    role: str, is_bare: bool, prompts: Tensor, encoded: Mapping[str, CellEmbeddings]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """All that a cell's encoders (name -> vectors) tell, and sentences that a reader must see beside it.

    Args:
        role: of the cell.
        is_bare: whether it is the bare model's.
        prompts: (N,) which prompt each image belongs to.
    """
    measured: dict[str, Any] = {}
    notes: list[str] = []
    for name, embeddings in encoded.items():
        if embeddings.texts is not None:
            measured |= _text_alignment(name, embeddings, embeddings.texts, is_bare, prompts)
            cut = int(embeddings.texts.is_truncated.sum())
            if cut:
                notes.append(
                    f"encoder {name!r} read only the beginning of {cut} of {len(embeddings.texts.vectors)} prompts."
                )
        if embeddings.without_texts is not None and bool(embeddings.without_texts.is_truncated.any()):
            cut, all_of_them = int(embeddings.without_texts.is_truncated.sum()), len(embeddings.without_texts.vectors)
            notes.append(f"encoder {name!r} read only the beginning of {cut} of {all_of_them} prompts in `without`.")
        if role == "forget":
            try:
                measured |= _deviation(name, embeddings, prompts)
            except MetricError as error:
                notes.append(f"csdr:{name} has no number: {error}")
            continue
        if not is_bare:
            measured |= _drift(name, embeddings, prompts)
            measured |= set_distances(
                name, embeddings.guarded, embeddings.bare, prompts, reads_texts=embeddings.texts is not None
            )
        if embeddings.reference is not None and role == "retain":
            measured |= _to_reference(name, embeddings.guarded, embeddings.reference, prompts)
    return measured, tuple(notes)


def check_embeddings(
    cell: str, encoded: Mapping[str, CellEmbeddings], guarded_blocked: Tensor, bare_blocked: Tensor
) -> None:
    """An image without a vector must be one that was never made."""
    for name, embeddings in encoded.items():
        for rows, blocked in ((embeddings.guarded, guarded_blocked), (embeddings.bare, bare_blocked)):
            if not torch.equal(~made(rows), blocked):
                raise BenchError(
                    f"{cell}: encoder {name!r} has no vector for an image that was made; delete its files in sets of "
                    "images/ and run "
                    "the bench again."
                )


def made(rows: Tensor) -> Tensor:
    """(N,) bool: rows of images that were made."""
    return ~rows.isnan().any(dim=1)


def _text_alignment(
    name: str, embeddings: CellEmbeddings, texts: TextEmbeddings, is_bare: bool, prompts: Tensor
) -> dict[str, Any]:
    """CLIP score, and its change against the bare model's."""
    wanted, out = texts.vectors[prompts], {}
    is_made = made(embeddings.guarded)
    if _several(prompts[is_made]):
        score = clip_score(embeddings.guarded[is_made], wanted[is_made])
        out[str(MetricKey("clip_score", name))] = bootstrap_mean(score, prompts[is_made]).to_dict()
    both = is_made & made(embeddings.bare)
    if not is_bare and _several(prompts[both]):
        now, then = (clip_score(rows[both], wanted[both]) for rows in (embeddings.guarded, embeddings.bare))
        out[str(MetricKey("clip_change", name))] = paired_difference(now, then, prompts[both]).to_dict()
    return out


def _several(prompts: Tensor) -> bool:
    """Whether these images are of two prompts or more: of one there is no interval."""
    return len(prompts.unique()) > 1


def _deviation(name: str, embeddings: CellEmbeddings, prompts: Tensor) -> dict[str, Any]:
    """CSDR, where there are prompts without the concept; MetricError where it has no number."""
    if embeddings.without is None or embeddings.without_texts is None:
        return {}
    both = made(embeddings.guarded) & made(embeddings.without)
    if not _several(prompts[both]):
        return {}
    wanted = embeddings.without_texts.vectors[prompts][both]
    reference, now = (clip_score(rows[both], wanted) for rows in (embeddings.without, embeddings.guarded))
    return {str(MetricKey("csdr", name)): csdr(reference, now, prompts[both]).to_dict()}


def _drift(name: str, embeddings: CellEmbeddings, prompts: Tensor) -> dict[str, Any]:
    both = made(embeddings.guarded) & made(embeddings.bare)
    with suppress(MetricError):  # fewer than two prompts, or bare images all alike: there is no unit of distance
        return {
            str(MetricKey("drift", name)): feature_drift(
                embeddings.guarded[both], embeddings.bare[both], prompts[both]
            ).to_dict()
        }
    return {}


def set_distances(
    name: str, guarded: Tensor, bare: Tensor, prompts: Tensor, *, reads_texts: bool = False
) -> dict[str, Any]:
    """KID, FID and, if the encoder reads texts, CMMD between the guarded and the bare model's images of the same prompts."""
    both = made(guarded) & made(bare)
    groups = prompt_groups(prompts[both])
    return _distances(MetricKey("", name), guarded[both], bare[both], groups, None, reads_texts=reads_texts)


def _to_reference(name: str, images: Tensor, reference: Tensor, prompts: Tensor) -> dict[str, Any]:
    is_made = made(images)
    groups = prompt_groups(prompts[is_made]), prompt_groups(torch.arange(len(reference)))
    return _distances(MetricKey("", name, REFERENCE), images[is_made], reference, *groups)


def _distances(
    key: MetricKey, a: Tensor, b: Tensor, groups_a: Tensor, groups_b: Tensor | None, *, reads_texts: bool = False
) -> dict[str, Any]:
    """What the sets are large enough for: KID and CMMD `MIN_IMAGES` images, FID more images than features."""
    smaller = min(len(a), len(b))
    kinds: list[Distance] = ["kid"] if smaller >= MIN_IMAGES else []
    kinds += ["fid"] if smaller > max(MIN_IMAGES, a.shape[1]) else []
    out = {}
    kinds += ["cmmd"] if smaller >= MIN_IMAGES and reads_texts else []
    for kind in kinds:
        sets = (normalize(a, dim=1), normalize(b, dim=1)) if kind == "cmmd" else (a, b)
        with suppress(MetricError):  # all images of one prompt, or nearly: there is no interval
            out[str(replace(key, metric=kind))] = _six_digits(distance_with_interval(kind, *sets, groups_a, groups_b))
    return out


def _six_digits(estimate: Mean) -> dict[str, Any]:
    """As `Mean.to_dict`, but with six digits that count: KID of unit vectors lies far below one."""
    mean, low, high = (float(f"{number:.6g}") for number in (estimate.value, estimate.low, estimate.high))
    return {"mean": mean, "n": estimate.n, "low": low, "high": high}
