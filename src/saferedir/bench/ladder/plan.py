"""The plan of a ladder, a TOML file: models' settings, concepts, guards, and blocks of cells in the order in which they run."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from saferedir.attacks.base import is_static, searches
from saferedir.attacks.registry import attack_class
from saferedir.bench.planning.matrix import GuardEntry
from saferedir.bench.planning.validation import validated
from saferedir.bench.records import BARE
from saferedir.errors import BenchError
from saferedir.utils.names import unknown_name_message
from saferedir.utils.text_files import read_text

from pydantic import BaseModel, ConfigDict, Field  # isort: skip - after the sentence about the extra

#: of the ladder, from the weakest attacker to the strongest
RUNGS = ("none", "static", "transfer", "adaptive", "soft", "latent", "image")
POLICIES = ("attach", "redirect", "verify", "block")
USUAL = "usual"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ConceptEntry(_Section):
    """A concept: prompts of a built-in world that ask for it, and the preset whose judges decide."""

    prompts: str
    judge: str


class SettingEntry(_Section):
    """Settings of the sampler: what changes in the call, and another scheduler's class of diffusers."""

    call: dict[str, Any] = Field(default_factory=dict)
    scheduler: str | None = None


class Block(_Section):
    """Cells: every concept, guard, policy and attack of the lists with every other, the last varying first.

    `optimised_on` and `optimised_at`: guard and setting where candidates are searched, to be judged here; the cell of that
    search runs first if it is missing. `see_verifier`: whether white-box attacks look through the image verifier.
    """

    concepts: list[str] = Field(min_length=1)
    guards: list[str] = Field(min_length=1)
    attacks: list[str] = Field(min_length=1)
    policies: list[str] = Field(default_factory=lambda: ["attach"])
    n: int = Field(ge=1)
    preset: str = "quick"
    settings: dict[str, Any] = Field(default_factory=dict)
    evaluations: int | None = None
    setting: str = USUAL
    see_verifier: bool = False
    control: str = "none"
    optimised_on: str | None = None
    optimised_at: str | None = None


class Plan(_Section):
    """A whole ladder."""

    title: str
    description: str = ""
    model: str = "pictoworld"
    seed: int = 0
    call: dict[str, Any] = Field(default_factory=dict)
    concept: dict[str, ConceptEntry] = Field(min_length=1)
    guard: dict[str, GuardEntry] = Field(default_factory=dict)
    setting: dict[str, SettingEntry] = Field(default_factory=dict)
    cells: list[Block] = Field(min_length=1)

    def setting_named(self, name: str) -> SettingEntry:
        """A setting; "usual" for the call as it is."""
        return self.setting[name] if name in self.setting else SettingEntry()


@dataclass(frozen=True)
class Cell:
    """One guard (or stack) under one attack, one policy and one setting of the sampler.

    Attributes:
        optimised_on, optimised_at: guard and setting of the search whose candidates are judged here; "" for here.
    """

    concept: str
    guard: str
    policy: str
    attack: str
    n: int
    preset: str = "quick"
    settings: tuple[tuple[str, Any], ...] = ()
    evaluations: int | None = None
    setting: str = USUAL
    see_verifier: bool = False
    control: str = "none"
    optimised_on: str = ""
    optimised_at: str = ""

    @property
    def is_transfer(self) -> bool:
        """Whether its candidates were searched elsewhere."""
        return bool(self.optimised_on or self.optimised_at)

    @property
    def source(self) -> Cell:
        """The cell of the search; itself where that is here. Guards are searched without a policy."""
        if not self.is_transfer:
            return self
        guard, setting = self.optimised_on or self.guard, self.optimised_at or self.setting
        changes = {"guard": guard, "setting": setting, "policy": "attach", "optimised_on": "", "optimised_at": ""}
        return Cell(**{**vars(self), **changes, "see_verifier": self.see_verifier and guard != BARE})

    @property
    def rung(self) -> str:
        """Of the ladder; what was optimised on another guard is a transfer, whichever channel it takes."""
        rung = attack_class(self.attack).rung
        return "transfer" if self.optimised_on and self.optimised_on != self.guard else rung

    @property
    def label(self) -> str:
        """For people and file names."""
        extra = [self.setting] if self.setting != USUAL else []
        extra += ["through verifier"] if self.see_verifier else []
        extra += [f"found on {self.source.guard}"] if self.optimised_on else []
        extra += [f"found at {self.source.setting}"] if self.optimised_at else []
        extra += [self.control] if self.control != "none" else []
        return ", ".join([f"{self.concept}: {self.guard} ({self.policy})", self.attack, *extra])


def read_plan(file: Path) -> Plan:
    """Read and check a plan; BenchError names the first thing that is wrong."""
    try:
        values = tomllib.loads(read_text(file))
    except tomllib.TOMLDecodeError as error:
        raise BenchError(f"{file.name} is no TOML file ({error}); mend it.") from error
    plan = validated(Plan, values, file.name)
    for cell in planned_cells(plan):
        _check(plan, cell)
    return plan


def planned_cells(plan: Plan) -> Iterator[Cell]:
    """Every cell, in the order in which they run; the same one may come twice."""
    for block in plan.cells:
        for concept, guard, policy, attack in product(block.concepts, block.guards, block.policies, block.attacks):
            if guard == BARE and policy != "attach":
                continue
            yield Cell(
                concept=concept,
                guard=guard,
                policy=policy,
                attack=attack,
                n=block.n,
                preset=block.preset,
                settings=tuple(sorted((name, _frozen(value)) for name, value in block.settings.items())),
                evaluations=block.evaluations,
                setting=block.setting,
                see_verifier=block.see_verifier,
                control=block.control,
                optimised_on=block.optimised_on or "",
                optimised_at=block.optimised_at or "",
            )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check(plan: Plan, cell: Cell) -> None:
    guards, settings = [BARE, *plan.guard], [USUAL, *plan.setting]
    for kind, name, known in (
        ("concept", cell.concept, list(plan.concept)),
        ("guard", cell.guard, guards),
        ("guard", cell.optimised_on or BARE, guards),
        ("setting", cell.setting, settings),
        ("setting", cell.optimised_at or USUAL, settings),
        ("policy", cell.policy, list(POLICIES)),
    ):
        if name not in known:
            raise BenchError(unknown_name_message(kind, name, known))
    kind_of_attack = attack_class(cell.attack)
    if not searches(kind_of_attack):
        hint = "put it into `attacks` of a bench" if is_static(kind_of_attack) else "name another"
        raise BenchError(f"attack {cell.attack!r} has nothing to search for; {hint}.")
    if cell.see_verifier and not kind_of_attack.is_adaptive:
        raise BenchError(f"attack {cell.attack!r} has no gate term, so see_verifier means nothing to it; leave it out.")
    if cell.is_transfer and cell.attack == "completion" and cell.source.setting != cell.setting:
        raise BenchError(
            "attack 'completion' sends latents that are noised already, so what was found under one setting has no meaning under "
            "another; leave optimised_at out."
        )
