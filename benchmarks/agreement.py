"""Does a bench of PictoWorld agree with docs/methods.json, which another program measured with more prompts?

    saferedir bench run pictoworld-quick --out runs/bench
    python benchmarks/agreement.py runs/bench

Two rates agree where their 95 % intervals overlap. Prints every number that does not, and how many do; ends with 1 where more
than one in twenty disagrees.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from saferedir.bench.records import BARE, CellRecord
from saferedir.bench.storage.saved_plan import read_saved_plan
from saferedir.bench.storage.store import Store
from saferedir.metrics import Rate


def pairs(records: list[CellRecord], known: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(what, rate of the bench, rate of the page) of every number that both have."""
    for record in records:
        name = record.name
        page = known.get(f"{name.concept}/{name.guard}")
        if page is None:
            continue
        if name.role == "forget" and name.prompts in page["concept"]:
            yield (
                f"{name.concept}, {name.guard}: {name.prompts}",
                record.measured["concept"],
                page["concept"][name.prompts],
            )
        if name.role == "retain" and name.guard != BARE:
            for ours, theirs in (("retention", "retain_kept"), ("identical", "retain_identical")):
                if ours in record.measured:
                    yield f"{name.concept}, {name.guard}: {theirs}", record.measured[ours], page[theirs]


def interval(rate: dict[str, Any]) -> str:
    """'0.500 [0.300, 0.700] of 14'."""
    return f"{rate['rate']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}] of {rate['n']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path, help="folder of a bench of PictoWorld")
    parser.add_argument("--against", type=Path, default=Path("docs/methods.json"))
    arguments = parser.parse_args()
    plan, store = read_saved_plan(arguments.bench), Store(arguments.bench)
    records = [one for one in store.read_cells([cell.name.slug for cell in plan.cells]) if not one.error]
    found = list(pairs(records, json.loads(arguments.against.read_text(encoding="utf-8"))["cells"]))
    if not found:
        sys.exit(f"{arguments.bench} and {arguments.against} have no number in common.")
    apart = [(what, a, b) for what, a, b in found if a["low"] > b["high"] or b["low"] > a["high"]]
    table = Table("number", "bench", "page", title="Intervals that do not overlap")
    for what, ours, theirs in apart:
        table.add_row(what, interval(ours), interval(theirs))
    console = Console()
    if apart:
        console.print(table)
    share = Rate(len(found) - len(apart), len(found))
    console.print(f"{share.hits} of {share.n} numbers agree within their intervals: {share}")
    sys.exit(share.value < 0.95)


if __name__ == "__main__":
    main()
