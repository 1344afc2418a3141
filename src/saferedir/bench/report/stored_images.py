"""Images of a bench folder for its report: the first of every prompt set, and the worst that a guard missed or changed.

Images of prompts from the user's own files are shown on request only, because the bare model's may be what nobody should have to
see; misses are counted all the same.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from saferedir.bench.evaluation.cells import chosen_values
from saferedir.bench.generation.generate import Shard
from saferedir.bench.generation.resources import Scorer
from saferedir.bench.planning.cell_spec import CellSpec
from saferedir.bench.records import BARE, CellRecord
from saferedir.bench.report.content.data import Group, Miss, Misses, Sample, groups
from saferedir.bench.storage.generated_set import GeneratedSet
from saferedir.bench.storage.saved_plan import SavedPlan
from saferedir.bench.storage.store import Store
from saferedir.errors import BenchError
from saferedir.judges.base import Scores
from saferedir.judges.rules import AllOf, AnyAbove, InTop, Rule, Unless, rule_from_dict
from saferedir.metrics import Choices, feature_distance

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
    """Of each guard in each group of cells: images on which the judge still finds the concept, and benign images that differ from
    the bare model's. Cells whose images or scores are not in the folder are left out.
    """
    reader = _Reader(plan, store)
    cells = {cell.name: cell for cell in _whole(plan, records)}
    all_misses = []
    for group in groups(records):
        counted = [cells[record.name] for record in group.cells if record.name in cells]
        for guard in (guard for guard in group.guards if guard != BARE):
            of_kind: dict[Literal["forget", "benign"], list[tuple[CellSpec, _OfCell]]] = {"forget": [], "benign": []}
            for cell in counted:
                if cell.name.guard == guard and (missed := reader.missed(cell)) is not None:
                    of_kind["forget" if cell.name.role == "forget" else "benign"].append((cell, missed))
            all_misses += [
                _misses(group, guard, kind, known, reader, private) for kind, known in of_kind.items() if known
            ]
    return tuple(all_misses)


def _misses(
    group: Group,
    guard: str,
    kind: Literal["forget", "benign"],
    known: Sequence[tuple[CellSpec, _OfCell]],
    reader: _Reader,
    private: bool,
) -> Misses:
    """Counts and images of the cells of one kind; the worst images of those that may be shown."""
    public = [of_cell for cell, of_cell in known if private or _is_public(reader.plan, cell)]
    hidden = [of_cell for cell, of_cell in known if not (private or _is_public(reader.plan, cell))]
    made = sorted(
        (image for of_cell in public for image in of_cell.made), key=lambda image: image.severity, reverse=True
    )
    shown = reader.shown(made)
    return Misses(
        group.model,
        group.concept,
        guard,
        kind,
        count=sum(of_cell.count for _, of_cell in known),
        n=sum(of_cell.n for _, of_cell in known),
        shown=shown,
        is_hidden=any(of_cell.count for of_cell in hidden),
        is_kept=bool(shown) or not made,
        protocols=tuple(dict.fromkeys(cell.protocol.id for cell, _ in known)),
    )


@dataclass(frozen=True)
class _Missed:
    """Where a missed or changed image lies, and how bad it is: numbers that are compared in turn, the highest first."""

    cell: CellSpec
    key: str
    bare_key: str
    row: int
    prompt: int
    severity: tuple[float, ...]


@dataclass(frozen=True)
class _OfCell:
    """Of `n` images `count` are missed or changed; `made` are those of them that were not refused."""

    count: int
    n: int
    made: tuple[_Missed, ...]


class _Reader:
    """Reads scores and features of each set of images once, and images only of what is shown."""

    def __init__(self, plan: SavedPlan, store: Store) -> None:
        self.plan, self.store = plan, store
        self._sets: dict[tuple[str, str], GeneratedSet | None] = {}
        self._vectors: dict[tuple[str, str], Tensor | None] = {}
        self._kept: dict[Shard, bool] = {}

    def missed(self, cell: CellSpec) -> _OfCell | None:
        """None where images or scores are not there."""
        count = n = 0
        made: list[_Missed] = []
        for key, bare_key in zip(cell.image_sets, cell.bare, strict=True):
            guarded, bare = self._read(key, cell.judge), self._read(bare_key, cell.judge)
            if guarded is None or bare is None:
                return None
            is_missed = _is_missed(cell, guarded, bare)
            count, n = count + int(is_missed.sum()), n + len(is_missed)
            is_made = ~guarded.blocked if cell.name.role == "forget" else ~(guarded.blocked | bare.blocked)
            rows = (is_missed & is_made).nonzero().flatten().tolist()
            severities = self._severities(cell, guarded, bare, key, bare_key) if rows else []
            made += [
                _Missed(cell, key, bare_key, row, int(guarded.prompt_of[row]), tuple(severities[row])) for row in rows
            ]
        return _OfCell(count, n, tuple(made))

    def shown(self, missed: Iterable[_Missed]) -> tuple[Miss, ...]:
        """The first `MISSES` whose images were kept; of the benign also the bare model's. Each shard is read once."""
        chosen = list(islice((miss for miss in missed if self._is_kept(miss)), MISSES))
        images = self._images(address for miss in chosen for address in _addresses(miss))
        shown = []
        for miss in chosen:
            image, *beside = (images[address] for address in _addresses(miss))
            text = _text(self.plan, miss.cell, miss.prompt)
            shown.append(Miss(miss.cell.name.prompts, miss.prompt, text, image, *beside))
        return tuple(shown)

    def _images(self, addresses: Iterable[tuple[str, int]]) -> dict[tuple[str, int], bytes]:
        """Thumbnails by address: the key of a set and the row in it."""
        by_shard: dict[Shard, list[tuple[str, int]]] = {}
        for key, row in addresses:
            by_shard.setdefault(self._shard(key, row), []).append((key, row))
        images: dict[tuple[str, int], bytes] = {}
        for shard, of_shard in by_shard.items():
            stored = self.store.images(shard)
            for key, row in of_shard:
                image = stored[row - shard.start]
                if image is None:
                    raise BenchError(
                        f"{self.store.images_folder / shard.key}: image {row} was neither refused nor stored; delete the folder "
                        "and run the bench again."
                    )
                images[key, row] = thumbnail(image)
        return images

    def _is_kept(self, missed: _Missed) -> bool:
        return all(self._has_images(self._shard(key, row)) for key, row in _addresses(missed))

    def _has_images(self, shard: Shard) -> bool:
        if shard not in self._kept:
            self._kept[shard] = self.store.has_images(shard)
        return self._kept[shard]

    def _shard(self, key: str, row: int) -> Shard:
        return next(shard for shard in self.plan.shards[key] if shard.start <= row < shard.stop)

    def _read(self, key: str, judge: str) -> GeneratedSet | None:
        if (key, judge) not in self._sets:
            judges = [spec for spec in self.plan.judges[key] if spec.key == judge]
            shards: Sequence[Shard] = self.plan.shards[key]
            is_there = all(self.store.has(shard) and not self.store.lacks(judges, shard) for shard in shards)
            self._sets[key, judge] = self.store.read(shards, judges, features_of="") if is_there and judges else None
        return self._sets[key, judge]

    def _severities(
        self, cell: CellSpec, guarded: GeneratedSet, bare: GeneratedSet, key: str, bare_key: str
    ) -> list[list[float]]:
        """Of each image. Forget: the judge's score. Benign: attributes lost, then the distance from the bare model's."""
        if cell.name.role == "forget":
            scores = concept_scores(rule_from_dict(cell.protocol.rule), guarded.scores[cell.judge])
            return scores.double().nan_to_num(0.0)[:, None].tolist()
        expected = self.plan.prompts[cell.prompts].expected
        asked = [expected[prompt] for prompt in guarded.prompt_of.tolist()]
        after, before = (chosen_values(images.scores[cell.judge]) for images in (guarded, bare))
        distances = self._distances(cell, guarded, bare, key, bare_key)
        return [
            [float(_lost(wanted, after, before, row)), distance]
            for row, (wanted, distance) in enumerate(zip(asked, distances, strict=True))
        ]

    def _distances(
        self, cell: CellSpec, guarded: GeneratedSet, bare: GeneratedSet, key: str, bare_key: str
    ) -> list[float]:
        """Of each image, by the features of the judge or of the first encoder that has them; 0 without any, or where refused."""
        distances = torch.zeros(len(guarded.checksums), dtype=torch.float64)
        is_made = ~(guarded.blocked | bare.blocked)
        for scorer in (cell.judge, *(use.key for use in cell.encoders.values())):
            mine, plain = self._features(key, scorer), self._features(bare_key, scorer)
            if mine is not None and plain is not None:
                distances[is_made] = feature_distance(mine[is_made], plain[is_made])
                break
        return distances.tolist()

    def _features(self, key: str, scorer: str) -> Tensor | None:
        if (key, scorer) not in self._vectors:
            scorers: list[Scorer] = [*self.plan.judges[key], *self.plan.encoders.get(key, ())]
            specs = [spec for spec in scorers if spec.key == scorer]
            shards: Sequence[Shard] = self.plan.shards[key]
            is_there = bool(specs) and not any(self.store.lacks(specs, shard) for shard in shards)
            self._vectors[key, scorer] = self.store.features(shards, scorer) if is_there else None
        return self._vectors[key, scorer]


def _addresses(missed: _Missed) -> tuple[tuple[str, int], ...]:
    """Key of the set and row, of the image and, if it is benign, of the bare model's."""
    addresses = ((missed.key, missed.row), (missed.bare_key, missed.row))
    return addresses[:1] if missed.cell.name.role == "forget" else addresses


def _is_missed(cell: CellSpec, guarded: GeneratedSet, bare: GeneratedSet) -> Tensor:
    """(N,) bool."""
    if cell.name.role == "forget":
        return rule_from_dict(cell.protocol.rule).decide(guarded.scores[cell.judge])
    pairs = zip(guarded.checksums, bare.checksums, strict=True)
    return torch.tensor([mine != plain for mine, plain in pairs], dtype=torch.bool)


def _lost(asked: Mapping[str, str], after: Choices, before: Choices, row: int) -> int:
    """How many attributes that the prompt asks for are right in the bare model's image and wrong in the guarded one."""
    return sum(before[name][row] == value != after[name][row] for name, value in asked.items() if name in before)


def concept_scores(rule: Rule, scores: Scores) -> Tensor:
    """(N,) how strongly the judge finds what a rule asks for, in the judge's own units; of several rules the weakest counts."""
    match rule:
        case AnyAbove(labels=labels):
            return torch.stack([scores.column(label) for label in labels], dim=1).amax(dim=1)
        case InTop(group=group, value=value):
            values, columns = scores.group(group)
            return columns[:, values.index(value)]
        case AllOf(rules=rules) if rules:
            return torch.stack([concept_scores(part, scores) for part in rules], dim=1).amin(dim=1)
        case Unless(rule=restricted):
            return concept_scores(restricted, scores)
    return torch.zeros(len(scores))


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
