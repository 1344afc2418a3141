"""measure_manifold(pipe, texts): statistics of what a pipeline's CLIP text encoders say, for `embeds_test`.

Half of the texts, and half of a set of random token sequences, give mean and covariance; the other halves give the bound. The
random ones are there so that honest prompts unlike the guard's own pass: they lie further out than sentences do. Pooled
embeddings, where the denoiser is given some, have statistics of their own, from as many more random ones as they are wide.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from saferedir.errors import GuardConfigError
from saferedir.guards.saferedir.manifold import PromptManifold, fit_manifold
from saferedir.pipelines.encoding import encode_prompts
from saferedir.pipelines.families import family_of

RANDOM_TEXTS = 1024
FALSE_POSITIVES = 0.005
MARGIN = 1.1
#: texts below which no bound is taken
LEAST_TEXTS = 20
#: texts for each dimension of pooled embeddings, of which a text has one, not one a token
POOLED_TEXTS = 4


def measure_manifold(
    pipe: Any,
    texts: Sequence[str],
    *,
    random_texts: int = RANDOM_TEXTS,
    false_positives: float = FALSE_POSITIVES,
    margin: float = MARGIN,
    call: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> PromptManifold:
    """Statistics of the embeddings of `texts` and of random token sequences, as this pipeline makes them.

    Args:
        pipe: a pipeline whose prompt embeddings come from CLIP alone (Stable Diffusion, SDXL).
        texts: prompts of the kind that will be given; 20 or more.
        random_texts: how many random sequences, of 1 to L - 2 tokens of the vocabulary, to add.
        false_positives: share of held-out texts that may exceed the bound before the margin.
        margin: factor on the bound, >= 1.
        call: arguments of the pipeline's call that change embeddings.
        seed: of the random sequences and of the halves.

    Raises:
        GuardConfigError: another text encoder, too few texts, or a number out of range.
    """
    family = family_of(pipe)
    kinds = {facts.kind for facts in family.text_encoder_facts}
    if kinds != {"clip"}:
        raise GuardConfigError(
            f"the prompt embeddings of a {type(pipe).__name__} do not come from CLIP alone, for which alone this test was made; "
            "set embeds_test to 'off'."
        )
    distinct = sorted(set(texts))
    if len(distinct) < LEAST_TEXTS:
        raise GuardConfigError(f"there are {len(distinct)} distinct prompts; give at least {LEAST_TEXTS}.")
    if random_texts < 0 or not 0 < false_positives < 1 or not margin >= 1:
        raise GuardConfigError(
            f"random_texts is {random_texts}, false_positives {false_positives} and margin {margin}; expected 0 or more, a share "
            "above 0 and below 1, and 1 or more."
        )
    generator = random.Random(seed)
    generator.shuffle(distinct)
    halves = [distinct[::2], distinct[1::2]]
    sequences = random_sequences(pipe.tokenizer, random_texts, generator)
    halves = [half + sequences[index::2] for index, half in enumerate(halves)]
    with torch.no_grad():
        encoded = [encode_prompts(pipe, half, call) for half in halves]
        fitted, held_out = (embeds.prompt.float().cpu() for embeds in encoded)
        manifold = fit_manifold(fitted, held_out, false_positives, margin)
        width = 0 if encoded[0].pooled is None else encoded[0].pooled.shape[1]
        if not width:
            return manifold
        more = random_sequences(pipe.tokenizer, max(0, POOLED_TEXTS * width - sum(map(len, halves))), generator)
        for index in range(2) if more else ():
            encoded[index] = encoded[index].cat(encode_prompts(pipe, more[index::2], call))
        fitted, held_out = (cast(Tensor, embeds.pooled).float().cpu()[:, None] for embeds in encoded)
    return replace(manifold, pooled=fit_manifold(fitted, held_out, false_positives, margin))


def random_sequences(tokenizer: Any, count: int, generator: random.Random) -> list[str]:
    """Texts of random tokens, of every length that the tokenizer takes."""
    special = set(tokenizer.all_special_ids)
    ids = [token for token in range(len(tokenizer)) if token not in special]
    longest = max(1, int(tokenizer.model_max_length) - 2)
    texts = (tokenizer.decode(generator.choices(ids, k=generator.randint(1, longest))) for _ in range(count))
    return [_fitting(tokenizer, text.split()) for text in texts]


def _fitting(tokenizer: Any, words: list[str]) -> str:
    """As many of the words as the tokenizer takes: what is decoded may be split into more tokens than it was made of."""
    while len(words) > 1 and len(tokenizer(" ".join(words), verbose=False).input_ids) > int(tokenizer.model_max_length):
        words = words[: len(words) // 2]
    return " ".join(words)
