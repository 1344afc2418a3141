"""Anchors of a policy, encoded by the pipeline's own text encoders when a guard is attached."""

from __future__ import annotations

from typing import Any

import torch

from saferedir.errors import UnsupportedPipelineError
from saferedir.guards.base import Guard
from saferedir.pipelines.encoding import encode_prompts
from saferedir.pipelines.families import Family
from saferedir.seam.begin import words_need_no_image
from saferedir.seam.requirements import check_text_encoders, check_works_without_text


@torch.no_grad()
def encode_anchors(pipe: Any, family: Family, guard: Guard[Any]) -> None:
    """Give a guard the conditioning of its `anchor_prompts`, encoded under the settings that it was trained under.

    Raises:
        GuardError: the text encoders are gone, or the embeddings are not finite.
        UnsupportedPipelineError: the pipeline reads no prompt, or encodes it together with an image.
    """
    texts = list(dict.fromkeys(guard.anchor_prompts.values()))
    if not texts:
        return
    if not family.has_text:
        check_works_without_text(pipe, guard)
    if family.encoder_reads_image:
        raise UnsupportedPipelineError(f"guard {guard.method!r}: {words_need_no_image(pipe)}")
    check_text_encoders(pipe, family, guard.method)
    guard.take_anchors(encode_prompts(pipe, texts, guard.config.training.get("call")))
