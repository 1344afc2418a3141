"""Concepts that exclude one another, as characters do: prompts and images of one are benign for all others.

A prompt for one concept may ask for another, too ("a fox beside a hare"); it is left out for those whose words it holds,
and so are all prompts where no word tells of a concept.
Used by many.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saferedir.training.saferedir.batches import ImageBatch, ImageData, image_batch
from saferedir.training.saferedir.dataset import Pair

#: a word tells of a concept where it is so many times as frequent in prompts that ask for it as in those that do not
TIMES = 10
#: images of others that a concept's thresholds are chosen on
MOST = 1000

#: scripts that write no space between words (Thai to Burmese, Khmer, Chinese, Japanese) or inflect within it (Korean)
_UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[^\W{_UNSPACED}]+|[{_UNSPACED}]+|[^\x00-\x7f\s]")
_RUN = re.compile(rf"[{_UNSPACED}]+")


def words_of(text: str) -> set[str]:
    """The words of a prompt, in lower case; of scripts without spaces each character and each two in a row; emoji."""
    words = set(_WORD.findall(text.casefold()))
    runs = {word for word in words if _RUN.fullmatch(word)}
    return (words - runs) | {
        run[at : at + size] for run in runs for size in (1, 2) for at in range(len(run) + 1 - size)
    }


def telling_words(pairs: Sequence[Pair]) -> frozenset[str]:
    """Words `TIMES` as frequent in prompts that ask for the concept as in those that do not, or in the former alone."""
    asking = [words_of(pair.unsafe) for pair in pairs if pair.unsafe is not None]
    others = [words_of(pair.safe) for pair in pairs]
    counts, rest = (Counter(word for words in side for word in words) for side in (asking, others))
    return frozenset(word for word, count in counts.items() if count * len(others) >= TIMES * rest[word] * len(asking))


def other_prompts(pairs: Mapping[str, Sequence[Pair]], telling: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
    """Of each concept prompts for the others that hold none of its words: at most as many as ask for it, the others in turn."""
    asking = {
        concept: [(pair.unsafe, words_of(pair.unsafe)) for pair in of if pair.unsafe is not None]
        for concept, of in pairs.items()
    }
    chosen: dict[str, list[str]] = {}
    for concept, words in telling.items():
        turns = [
            [text for text, held in texts if words and not words & held]
            for other, texts in asking.items()
            if other != concept
        ]
        chosen[concept] = list(_in_turn(turns))[: len(asking[concept])]
    return chosen


def _in_turn(lists: Sequence[Sequence[str]]) -> Iterable[str]:
    """The first of each list, then the second of each, and so on; each text once."""
    longest = max(map(len, lists), default=0)
    return dict.fromkeys(of[index] for index in range(longest) for of in lists if index < len(of))


@dataclass(frozen=True)
class Others:
    """Images that show one concept each, and of each concept the rows of images that show another one."""

    images: ImageData
    rows: Mapping[str, Tensor]

    @classmethod
    def of_images(
        cls, images: ImageData, shown: Sequence[str], prompts: Sequence[str], telling: Mapping[str, frozenset[str]]
    ) -> Others:
        """Of N images, the concept of each and its prompt."""
        texts = [words_of(prompt) for prompt in prompts]
        rows = {
            concept: [
                row
                for row, (other, text) in enumerate(zip(shown, texts, strict=True))
                if other != concept and words and not words & text
            ]
            for concept, words in telling.items()
        }
        benign = replace(images, label=torch.zeros_like(images.label))
        return cls(benign, {concept: torch.tensor(of, dtype=torch.long) for concept, of in rows.items()})

    def batch(self, concept: str, count: int, generator: torch.Generator) -> ImageBatch:
        """`count` random frames of others; of none where every other prompt may ask for the concept."""
        rows = self.rows[concept]
        return image_batch(self.images, count if len(rows) else 0, generator, among=rows)

    def of(self, concept: str) -> ImageData:
        """At most `MOST` of the images of others, spread evenly over them."""
        rows = self.rows[concept]
        return self.images.rows(rows[:: max(1, -(-len(rows) // MOST))])
