"""What a report is made from: plain frozen data, and the grouping of cells that tables.py builds on.

What stands in which column: tables.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from saferedir.bench.records import BARE, CellRecord, Cost
from saferedir.judges.calibration import Calibration


class PublishedRow(Protocol):
    """A number of a paper; `bench.published` has the rows. Nothing here asks for more than these names."""

    @property
    def table(self) -> str: ...
    @property
    def system(self) -> str: ...
    @property
    def attack(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def unit(self) -> str: ...
    @property
    def n(self) -> int | None: ...
    @property
    def judge_preset(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def evidence(self) -> str: ...
    @property
    def note(self) -> str: ...
    @property
    def source(self) -> str: ...


@dataclass(frozen=True)
class Sample:
    """One prompt's images, for a grid.

    Attributes:
        model: name as in `CellName`.
        concept: name of the concept.
        prompts: name of the prompt set.
        index: the prompt's number in its set, from 0.
        prompt: its text where the bench's prompts may be shown, else None.
        images: guard -> PNG bytes, "none" (unguarded) included.
    """

    model: str
    concept: str
    prompts: str
    index: int
    prompt: str | None
    images: Mapping[str, bytes]


@dataclass(frozen=True)
class Miss:
    """One image under a guard that still shows the concept, or a benign one that is not the bare model's.

    A benign image counts as changed where a single bit differs, so that many of them are no fault of the guard.

    Attributes:
        prompts: name of the prompt set.
        index: the prompt's number in its set, from 0.
        prompt: its text where the bench's prompts may be shown, else None.
        image: PNG or WebP.
        bare: the bare model's image of the same prompt and noise; None for a forget prompt.
    """

    prompts: str
    index: int
    prompt: str | None
    image: bytes
    bare: bytes | None = None


@dataclass(frozen=True)
class Misses:
    """How often a guard missed one concept, or changed benign images, with the worst of these images.

    Attributes:
        model: name as in `CellName`.
        concept: name of the concept.
        guard: name of the guard.
        kind: "forget" (the judge still finds the concept) or "benign" (the image is not the bare model's).
        count: missed or changed images of `n`.
        n: all images of this kind.
        shown: of those that were kept and may be shown, the worst few, the worst first.
        is_hidden: whether some may not be shown, because the prompts are the user's own.
        is_kept: False where images could be shown, had the bench kept any.
        protocols: ids of the protocols of the cells counted; (): those of any group of cells with this guard.
    """

    model: str
    concept: str
    guard: str
    kind: Literal["forget", "benign"]
    count: int
    n: int
    shown: tuple[Miss, ...] = ()
    is_hidden: bool = False
    is_kept: bool = True
    protocols: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportData:
    """All that a report says.

    Attributes:
        title: of the bench, in its author's words.
        description: of the bench, by its author, too.
        cells: every record, with or without numbers.
        costs: one a guard and model.
        samples: images for the grids; may be empty.
        misses: of each guard and concept, where they are known.
        calibrations: (judge, concept) -> what is known of its errors by the very rule of the cells; none: uncalibrated.
        published: numbers of papers; they never share a table with the bench's own.
        missing: one sentence per cell that has no number, and why.
        warnings: sentences that a reader must see, beside those of the cells.
        made: one line about versions and date.
        encoders: name in the matrix -> what it is, in words.
    """

    title: str
    description: str
    cells: tuple[CellRecord, ...]
    costs: tuple[Cost, ...] = ()
    samples: tuple[Sample, ...] = ()
    calibrations: Mapping[tuple[str, str], Calibration] = field(default_factory=dict)
    published: tuple[PublishedRow, ...] = ()
    missing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    made: str = ""
    encoders: Mapping[str, str] = field(default_factory=dict)
    misses: tuple[Misses, ...] = ()


@dataclass(frozen=True)
class Group:
    """Cells that one ranking may use: one model, one concept, and per phrasing one protocol.

    Attributes:
        model: name as in `CellName`.
        concept: name of the concept.
        cells: of all guards that were measured under these protocols, or under some of them.
        number: 1 for a concept's first group, 2 for the next: guards measured under other protocols.
    """

    model: str
    concept: str
    cells: tuple[CellRecord, ...]
    number: int = 1

    @property
    def anchor(self) -> str:
        """Id of the group's section in the page."""
        text = f"{self.model}-{self.concept}-{self.number}"
        return "".join(c if c.isalnum() and c.isascii() else "-" for c in text)

    @property
    def guards(self) -> tuple[str, ...]:
        """The guards, the bare model first, then in the order of the cells."""
        names = dict.fromkeys(cell.name.guard for cell in self.cells)
        return tuple(sorted(names, key=lambda name: name != BARE))

    def ordered(self, guards: Sequence[str]) -> Group:
        """The same group with its guards in this order."""
        order = {guard: index for index, guard in enumerate(guards)}
        return replace(self, cells=tuple(sorted(self.cells, key=lambda cell: order.get(cell.name.guard, -1))))

    def of(self, guard: str, *roles: str) -> tuple[CellRecord, ...]:
        """A guard's cells of some roles."""
        return tuple(cell for cell in self.cells if cell.name.guard == guard and cell.name.role in roles)


def groups(cells: Sequence[CellRecord]) -> tuple[Group, ...]:
    """Part the cells so that within a group every guard was measured under the same protocols.

    A guard whose cells cover only some of another's protocols (an unfinished bench) stays in that one's group; a guard under
    other protocols (another seed, other steps) founds a group of its own. The order is that of the cells.
    """
    parted: list[Group] = []
    for model, concept in dict.fromkeys((cell.name.model, cell.name.concept) for cell in cells):
        of_guard: dict[tuple[str, tuple[int, ...]], list[CellRecord]] = {}
        for cell in cells:
            if (cell.name.model, cell.name.concept) == (model, concept):
                of_guard.setdefault((cell.name.guard, cell.name.seeds), []).append(cell)
        signatures = {key: frozenset(cell.protocol.id for cell in records) for key, records in of_guard.items()}
        largest = dict.fromkeys(
            ids for ids in signatures.values() if not any(ids < other for other in signatures.values())
        )
        members: dict[frozenset[str], list[CellRecord]] = {ids: [] for ids in largest}
        for key, records in of_guard.items():
            members[next(ids for ids in largest if signatures[key] <= ids)] += records
        for number, records in enumerate(members.values(), start=1):
            parted.append(Group(model, concept, tuple(records), number))
    return tuple(parted)
