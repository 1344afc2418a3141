"""Which token becomes which: the same sentence around another part, padding, and prompts whose ids nobody knows."""

from __future__ import annotations

import pytest
from tests.tiny_pipelines import PIPELINES

import saferedir as sr
from saferedir.training.saferedir.dataset import encode_on_cpu
from saferedir.training.uce.tokens import counterparts, pair_rows

BOS, EOS = 0, 9


@pytest.mark.parametrize(
    ("unsafe", "safe", "others", "last"),
    [
        # the same length: everything stays where it is
        ([BOS, 1, 2, 3, EOS], [BOS, 1, 7, 3, EOS], [0, 1, 2, 3, 4, 5, 6], 2),
        # the concept has two tokens, what replaces it one: both become it
        ([BOS, 1, 2, 4, 3, EOS], [BOS, 1, 7, 3, EOS], [0, 1, 2, 2, 3, 4, 5], 3),
        # the other way round: the last becomes the last
        ([BOS, 1, 2, 3, EOS], [BOS, 1, 7, 8, 3, EOS], [0, 1, 3, 4, 5, 6, 6], 2),
        # nothing replaces it: the first token behind it does
        ([BOS, 1, 2, EOS], [BOS, 1, EOS], [0, 1, 2, 2, 3, 4, 5], 2),
        # equal prompts
        ([BOS, 1, EOS], [BOS, 1, EOS], [0, 1, 2, 3, 4, 5, 6], 2),
    ],
)
def test_counterparts(unsafe: list[int], safe: list[int], others: list[int], last: int) -> None:
    rows = counterparts(unsafe, safe, 7)
    assert [row.position for row in rows] == list(range(7)) and [row.counterpart for row in rows] == others
    assert [row.position for row in rows if row.is_last] == [last]


def test_without_ids_a_prompt_is_stretched_to_its_counterpart() -> None:
    rows = counterparts(5, 3, 8)
    assert [row.counterpart for row in rows] == [0, 0, 1, 2, 2, 3, 4, 5]
    assert [row.position for row in rows if row.is_last] == [4]


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart-sigma", "sana", "lumina2", "aura-flow", "wan"])
def test_every_token_that_a_denoiser_reads_has_a_counterpart_that_it_reads(name: str) -> None:
    pipe = PIPELINES[name].build()
    unsafe, safe = ["a star", "big star here"], ["a ring", "big moon and ring here"]
    both = encode_on_cpu(pipe, [*unsafe, *safe])
    if PIPELINES[name].family in ("aura-flow", "wan"):  # zeros of padding are read
        both = both._replace(mask=None)
    for number, rows in enumerate(pair_rows(pipe, unsafe, safe, both, "all")):
        read = range(both.prompt.shape[1]) if both.mask is None else both.mask[number].nonzero()[:, 0].tolist()
        assert [row.position for row in rows] == list(read)
        assert both.mask is None or all(both.mask[number + 2, row.counterpart] for row in rows)
    if name in ("sana", "lumina2", "aura-flow"):  # whose tokens are not known: which one is the concept's last?
        with pytest.raises(sr.GuardError, match="tokens='last' needs a text encoder"):
            pair_rows(pipe, unsafe, safe, both, "last")
        return
    for rows in pair_rows(pipe, unsafe, safe, both, "last"):
        assert len(rows) == (2 if name == "sd3" else 1)  # SD3 reads a sentence of CLIP's tokens, then of T5's
