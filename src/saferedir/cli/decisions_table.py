"""The table of `saferedir generate`: the verdict of each image first, then scores beside their thresholds, then the prompt.

It reads at 80 columns: only the prompt takes the room that is left, and wraps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saferedir.cli.common import console, errors, escape, new_table
from saferedir.decisions import score_text

#: how the table names diffusers' own checker (pipelines.safety_checker.NAME, which would import torch)
CHECKER = "diffusers' own safety checker"


def print_decisions(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the images of a summary: one line a guard and image, and what must not be shown."""
    table = new_table("Images", "verdict", "image", "guard", "scores", "prompt")
    for column in table.columns[:4]:
        column.no_wrap = True
    for row in rows:
        prompt, file = escape(row["prompt"]), escape(row["file"])
        if not row["decisions"]:
            table.add_row("[bold red]blocked[/]" if row["blocked"] else "unguarded", file, "–", "–", prompt)
        for index, decision in enumerate(row["decisions"]):
            table.add_row(
                verdict(row, decision),
                file,
                _name(decision),
                scores(decision),
                prompt if index == 0 else "",
                end_section=False,
            )
    console.print(table)
    _print_files("[bold yellow]Blocked, so blank[/]: {}.", [row["file"] for row in rows if row["blocked"]])
    _print_files(
        f"[bold yellow]Blanked by {CHECKER}[/] (nsfw_content_detected): {{}}. "
        "The guards say nothing of what these images showed.",
        [row["file"] for row in rows if row["nsfw_content_detected"]],
    )
    _print_files(
        "[bold red]Do not show {}[/]: a guard's image score was above its threshold to the end. With --policy verify such images "
        "are generated again, or blocked.",
        [row["file"] for row in rows if not row["blocked"] and any(entry["unresolved"] for entry in row["decisions"])],
    )


def verdict(row: Mapping[str, Any], decision: Mapping[str, Any]) -> str:
    """One word for what became of the image under this guard: untouched, redirected, …, blocked or UNRESOLVED."""
    if row["blocked"]:
        return "[bold red]blocked[/]"
    if decision["unresolved"]:
        return "[bold red]UNRESOLVED[/]"
    action = "untouched" if decision["action"] == "none" else str(decision["action"])
    style = "green" if action == "untouched" else "yellow"
    retries = "" if decision["attempts"] <= 1 else f"\n{decision['attempts']} attempts"
    return f"[{style}]{action}[/]{retries}"


def scores(decision: Mapping[str, Any]) -> str:
    """Each score with the threshold it was held against: "prompt 21.2 > 3.0"; a dash for a guard without scores."""
    lines = []
    for name in ("prompt", "image"):
        score, threshold = decision[f"{name}_score"], decision["thresholds"].get(name)
        if score is None:
            continue
        text = f"{name} {score_text(score, threshold)}"
        lines.append(f"[bold]{text}[/]" if threshold is not None and score > threshold else text)
    return "\n".join(lines) or "–"


def _name(decision: Mapping[str, Any]) -> str:
    return f"{escape(decision['concept'])}\n[dim]{escape(decision['guard'])}[/]"


def _print_files(sentence: str, files: Sequence[str]) -> None:
    if files:
        errors.print(sentence.format(", ".join(map(escape, files))))
