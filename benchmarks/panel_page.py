"""The page of the panel of attacks (hardened_panel.py), from the cells that it keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saferedir.metrics import Rate
from saferedir.pictoworld.tasks import TASKS

HEAD = """# Panel of attacks

Made by `{command}` from cells that the same command measures without `--page`; its help
says more. {n} forget prompts of test-seen whose image both judges find the concept in on the bare model in 10 steps; the share of
them whose image both judges find it in after the attack, neither broken nor blocked, with its 95 % Wilson interval.

- **attach**: the guard alone. **verify, own verdicts**: `protect(on_unsafe="verify")` that asks the guard's verdicts (a run in
  which the guard had no later look, as in 2 steps, is refused). **verify, with verifier**: the same with the image verifier.
- *refused* and *broken* count rows under `attach`; a refused call shows nothing.
- "and verifier": looks through the image verifier, too. "long": searches five to seven times as long.
- Attacks on latents in 2 steps have little room: the bare model itself breaks half of such images.
- "img2img gradient" hands its start over as latents, which guards with a test of latents refuse by now; its rows keep the
  attack without that refusal ([what got through](hardening.md#what-got-through)).
- **usual**, `pictoworld/{{concept}}-usual`, is the guard without rules and tests; **star**, **emblem** and **pointillism** are
  the packaged ones; **+refresh.5** and **+refresh1** are these with `latents_test="refresh_all"` and that share, measured on
  attacks that got past the packaged ones most often.
- Guards without verdicts of their own meet fewer attacks (no misspelling below a threshold, no silenced verdict), so that
  their rows are of weaker attackers.

"""

COLUMNS = {"attach": "attach", "verify": "verify, own verdicts", "verifier": "verify, with verifier"}
#: the channel of an attack's name -> what the page calls it
CHANNELS = ("text", "soft", "latent", "image")


def kept_cells(work: Path, task: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Guard -> attack -> record, of the cells that were measured."""
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    paths = (work / task).glob("*/*.json")
    for path in sorted(paths, key=lambda path: (path.parent.name.removesuffix("-hardened"), path.name)):
        record = json.loads(path.read_text())
        if record["n"]:
            name = path.parent.name.removeprefix("pictoworld_").removesuffix("-hardened")
            cells.setdefault(name.replace("packaged", "usual"), {})[path.stem] = (
                record  # cells keep the names of before
            )
    return cells


def share(record: dict[str, Any] | None, column: str) -> str:
    """A cell of the page: rate and interval; – where it was not measured."""
    if record is None or column not in record:
        return "–"
    rate = Rate(record[column], record["n"])
    return f"{rate.value:.2f} [{rate.interval[0]:.2f}, {rate.interval[1]:.2f}]"


def worst(rows: dict[str, dict[str, Any]], channel: str, column: str) -> str:
    """The most successful attack of a channel."""
    found = [(record[column] / record["n"], name) for name, record in rows.items()
             if name.removeprefix("long: ").startswith(channel) and column in record]  # fmt: skip
    return share(rows[max(found)[1]], column) if found else "–"


def page(work: Path, n: int, command: str, attacks: Sequence[str]) -> str:
    """The cells of a folder as a page: one table of SafeRedir guards by attack, one of all guards by channel, for every task.

    `attacks`: names of all, in the order of the rows.
    """
    lines = [HEAD.format(n=n, command=command)]
    for task in TASKS:
        cells = kept_cells(work, task)
        for guard, rows in cells.items():
            if any("verifier" in record for record in rows.values()):
                lines += [
                    f"## {task}: {guard}",
                    "",
                    f"| attack | {' | '.join(COLUMNS.values())} | refused | broken |",
                    "|---" * 6 + "|",
                ]
                lines += [
                    f"| {attack} | {' | '.join(share(record, column) for column in COLUMNS)} | "
                    f"{record['refused']} | {record['broken']} |"
                    for attack, record in sorted(rows.items(), key=lambda row: attacks.index(row[0]))
                ]
                lines += [""]
        if cells:
            lines += [f"## {task}: every guard, worst attack of each channel", ""]
            lines += [f"| guard | {' | '.join(CHANNELS)} |", "|---" * (1 + len(CHANNELS)) + "|"]
            for guard, rows in cells.items():
                for column, name in COLUMNS.items():
                    if any(column in record for record in rows.values()):
                        lines.append(
                            f"| {guard}, {name} | {' | '.join(worst(rows, channel, column) for channel in CHANNELS)} |"
                        )
            lines += [""]
    return "\n".join(lines)
