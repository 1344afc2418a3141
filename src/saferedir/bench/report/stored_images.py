"""Images of a bench folder for its report: the first of every prompt set, and those that a guard missed.

Images of prompts from the user's own files are shown on request only, because the bare model's may be what nobody should have to
see; misses are counted all the same.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from saferedir.bench.generation.generate import Shard
from saferedir.bench.planning.cell_spec import CellSpec
from saferedir.bench.records import BARE, CellRecord
from saferedir.bench.report.content.data import Miss, Misses, Sample
from saferedir.bench.storage.generated_set import GeneratedSet
from saferedir.bench.storage.saved_plan import SavedPlan
from saferedir.bench.storage.store import Store
from saferedir.judges.rules import rule_from_dict

#: prompts of each set that the image grids show
SAMPLES = 2
#: images of each kind of miss that are shown
MISSES = 3
#: a larger image of a miss is shown smaller, so that the page stays one file that can be sent
_WIDTH = 256


def samples(plan: SavedPlan, records: Sequence[CellRecord], store: Store, *, private: bool) -> tuple[Sample, ...]:
    """The first images of every prompt set, all guards beside the bare model; with `private` also of the user's own prompts."""
    sets: dict[tuple[str, str, str], list[CellSpec]] = {}
    for cell in _whole(plan, records):
        if (private or _is_public(plan, cell)) and store.has(plan.shards[cell.image_sets[0]][0]):
            sets.setdefault((cell.name.model, cell.name.concept, cell.name.prompts), []).append(cell)
    chosen = []
    for (model, concept, prompts), cells in sets.items():
        images = {cell.name.guard: _first_images(plan, cell.image_sets[0], store) for cell in cells}
        for index in range(min(SAMPLES, *map(len, images.values()))):
            shown = {guard: image for guard, first in images.items() if (image := first[index]) is not None}
            if BARE in shown:
                chosen.append(Sample(model, concept, prompts, index, _text(plan, cells[0], index), shown))
    return tuple(chosen)


def misses(plan: SavedPlan, records: Sequence[CellRecord], store: Store, *, private: bool) -> tuple[Misses, ...]:
    """Of each guard and concept: images on which the judge still finds the concept, and benign images that are not the bare
    model's. Cells whose images or scores are not in the folder are left out.
    """
    by_guard: dict[tuple[str, str, str], list[CellSpec]] = {}
    for cell in _whole(plan, records):
        if cell.name.guard != BARE:
            by_guard.setdefault((cell.name.model, cell.name.concept, cell.name.guard), []).append(cell)
    reader = _Reader(plan, store)
    all_misses = []
    for (model, concept, guard), cells in by_guard.items():
        for kind in ("forget", "benign"):
            of_kind = [cell for cell in cells if (cell.name.role == "forget") == (kind == "forget")]
            missed = [of_cell for cell in of_kind if (of_cell := reader.missed(cell, private)) is not None]
            if missed:
                all_misses.append(
                    Misses(
                        model,
                        concept,
                        guard,
                        "forget" if kind == "forget" else "benign",
                        count=sum(of_cell.count for of_cell in missed),
                        n=sum(of_cell.n for of_cell in missed),
                        shown=_in_turn([of_cell.shown for of_cell in missed]),
                        is_hidden=any(of_cell.is_hidden for of_cell in missed),
                    )
                )
    return tuple(all_misses)


@dataclass(frozen=True)
class _Missed:
    """Of one cell; see `Misses`."""

    count: int
    n: int
    shown: tuple[Miss, ...]
    is_hidden: bool


class _Reader:
    """Reads each set of images once."""

    def __init__(self, plan: SavedPlan, store: Store) -> None:
        self.plan, self.store = plan, store
        self._sets: dict[tuple[str, str], GeneratedSet | None] = {}

    def missed(self, cell: CellSpec, private: bool) -> _Missed | None:
        """None where images or scores are not there."""
        count = n = 0
        shown: list[Miss] = []
        is_shown = private or _is_public(self.plan, cell)
        for key, bare_key in zip(cell.image_sets, cell.bare, strict=True):
            guarded, bare = self._read(key, cell.judge), self._read(bare_key, cell.judge)
            if guarded is None or bare is None:
                return None
            rows = _missed_rows(cell, guarded, bare).nonzero().flatten().tolist()
            count, n = count + len(rows), n + len(guarded.checksums)
            for row in rows if is_shown else ():
                if len(shown) == MISSES:
                    break
                shown += self._miss(cell, key, bare_key, row, int(guarded.prompt_of[row]))
        return _Missed(count, n, tuple(shown), is_hidden=count > 0 and not is_shown)

    def _miss(self, cell: CellSpec, key: str, bare_key: str, row: int, prompt: int) -> list[Miss]:
        """The miss in a row of a set of images; [] where its image was refused or not kept."""
        image, bare = self._image(key, row), self._image(bare_key, row)
        if image is None or (bare is None and cell.name.role != "forget"):
            return []
        beside = None if cell.name.role == "forget" or bare is None else thumbnail(bare)
        return [Miss(cell.name.prompts, prompt, _text(self.plan, cell, prompt), thumbnail(image), beside)]

    def _image(self, key: str, row: int) -> bytes | None:
        shard = next(shard for shard in self.plan.shards[key] if shard.start <= row < shard.stop)
        return self.store.images(shard)[row - shard.start]

    def _read(self, key: str, judge: str) -> GeneratedSet | None:
        if (key, judge) not in self._sets:
            judges = [spec for spec in self.plan.judges[key] if spec.key == judge]
            shards: Sequence[Shard] = self.plan.shards[key]
            is_there = all(self.store.has(shard) and not self.store.lacks(judges, shard) for shard in shards)
            self._sets[key, judge] = self.store.read(shards, judges, features_of="") if is_there and judges else None
        return self._sets[key, judge]


def _missed_rows(cell: CellSpec, guarded: GeneratedSet, bare: GeneratedSet) -> Tensor:
    """(N,) bool."""
    if cell.name.role == "forget":
        return rule_from_dict(cell.protocol.rule).decide(guarded.scores[cell.judge])
    pairs = zip(guarded.checksums, bare.checksums, strict=True)
    return torch.tensor([mine != plain for mine, plain in pairs], dtype=torch.bool)


def _in_turn(lists: Sequence[Sequence[Miss]]) -> tuple[Miss, ...]:
    """The first of each prompt set, then the second of each, and so on; `MISSES` in all."""
    longest = max(map(len, lists))
    return tuple(of_cell[index] for index in range(longest) for of_cell in lists if index < len(of_cell))[:MISSES]


def thumbnail(png: bytes) -> bytes:
    """The image itself where it is at most `_WIDTH` pixels wide and high, else a smaller WebP of it."""
    with Image.open(io.BytesIO(png)) as image:
        if max(image.size) <= _WIDTH:
            return png
        small = image.convert("RGB")
        small.thumbnail((_WIDTH, _WIDTH))
    out = io.BytesIO()
    small.save(out, format="WEBP", quality=80)
    return out.getvalue()


def _whole(plan: SavedPlan, records: Iterable[CellRecord]) -> list[CellSpec]:
    """Cells with a number."""
    names = {record.name for record in records if not record.error}
    return [cell for cell in plan.cells if cell.name in names]


def _is_public(plan: SavedPlan, cell: CellSpec) -> bool:
    """Whether its prompts are a built-in world's."""
    return plan.prompts[cell.prompts].texts is not None


def _text(plan: SavedPlan, cell: CellSpec, index: int) -> str | None:
    texts = plan.prompts[cell.prompts].texts
    return texts[index] if texts else None


def _first_images(plan: SavedPlan, key: str, store: Store) -> list[bytes | None]:
    """The first image of each of the first prompts."""
    shard = plan.shards[key][0]
    first: dict[int, bytes | None] = {}
    for prompt, image in zip(store.prompts_of(shard), store.images(shard), strict=True):
        first.setdefault(prompt, image)
    return list(first.values())[:SAMPLES]
