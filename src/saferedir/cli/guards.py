"""`saferedir guards list` and `show`: what is packaged, and all facts of one guard. A broken guard is an error.

`calibrate` is in calibrate.py, `manifold` in manifold.py, `merge` in merge.py, `test` in guard_test.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from saferedir.cli.calibrate import calibrate
from saferedir.cli.common import console, escape, new_table, print_json
from saferedir.cli.guard_test import test
from saferedir.cli.manifold import manifold
from saferedir.cli.merge import merge
from saferedir.cli.options import AsJson

guards_app = typer.Typer(
    name="guards",
    help="List, show, test, calibrate and merge guards.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
guards_app.command(no_args_is_help=True)(calibrate)
guards_app.command(no_args_is_help=True)(manifold)
guards_app.command(no_args_is_help=True)(merge)
guards_app.command(no_args_is_help=True)(test)


@guards_app.command("list")
def list_guards(as_json: AsJson = False) -> None:
    """List the guards that come with the package.

    Example:  `saferedir guards list`
    """
    from saferedir.utils.packaged import list_packaged_guards, packaged_guard_path

    records = [_read_facts(name, packaged_guard_path(name)) for name in list_packaged_guards()]
    if as_json:
        print_json(records)
        return
    if not records:
        console.print("This installation has no packaged guards; train one with `saferedir train saferedir`.")
        return
    table = new_table("Packaged guards", "guard", "concept, method", "thresholds")
    for column in table.columns[1:]:
        column.no_wrap = True
    for record in records:
        config = record["config"]
        thresholds = "\n".join(f"{k} {v:.2f}" for k, v in record["thresholds"].items())
        table.add_row(*map(escape, (record["guard"], f"{_concept_text(config)}\n{config['method']}", thresholds)))
    console.print(table)
    console.print("Rules and tests that are on (docs/hardening.md); none in the others:")
    for record in records:
        if record["rules"]:
            rules = ", ".join(f"{name} {value}" for name, value in record["rules"].items())
            console.print(f"  {escape(record['guard'])}: {rules}", soft_wrap=True)


def _concept_text(config: dict[str, Any]) -> str:
    """The concept, or how many a guard of many has."""
    concepts = config.get("network", {}).get("concepts", ())
    return f"{len(concepts)} concepts" if len(concepts) > 1 else str(config["concept"])


@guards_app.command()
def show(
    guard: Annotated[str, typer.Argument(metavar="ID", help="A packaged guard, a folder, or a hub id.")],
    as_json: AsJson = False,
) -> None:
    """Show one guard: its settings, how it was trained, and what was measured.

    Example:  `saferedir guards show pictoworld/star`
    """
    record = _facts(guard)
    if as_json:
        print_json(record)
        return
    config = dict(record["config"])
    console.print(f"[bold]{escape(record['guard'])}[/]  {escape(record['folder'])}", soft_wrap=True)
    parts = {name: config.pop(name, None) for name in ("calibration", "measured", "training", "network", "backbone")}
    _facts_table("Settings", config)
    for name, values in parts.items():
        if isinstance(values, dict) and values:
            _facts_table(name.capitalize(), values)


def _facts(name: str) -> dict[str, Any]:
    """Config, thresholds and size of a guard that can be loaded; its own error for one that cannot."""
    from saferedir.guards.base import Guard
    from saferedir.guards.storage import find_guard

    folder = Path(find_guard(name))
    record = _read_facts(name, folder)
    Guard.from_pretrained(folder)
    return record


def _read_facts(name: str, folder: Path | None) -> dict[str, Any]:
    """The same from the guard's files alone, without loading it, and so without torch."""
    from saferedir.errors import GuardConfigError, GuardNotFoundError
    from saferedir.utils.packaged import GUARD_CONFIG
    from saferedir.utils.rules import active_rules
    from saferedir.utils.shared_files import files_of

    if folder is None or not (folder / GUARD_CONFIG).is_file():
        raise GuardNotFoundError(f"guard {name!r} is not there whole; install saferedir again.")
    try:
        config = json.loads((folder / GUARD_CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise GuardConfigError(f"{folder / GUARD_CONFIG} is not JSON ({error}); train the guard again.") from error
    if not isinstance(config, dict) or "method" not in config or "concept" not in config:
        raise GuardConfigError(f"{folder / GUARD_CONFIG} names no method and concept, so it is not a guard.")
    thresholds = {k.removesuffix("_threshold"): v for k, v in config.items() if k.endswith("_threshold")}
    size = sum(path.stat().st_size for path in files_of(folder))
    facts = {"thresholds": thresholds, "rules": active_rules(config), "bytes": size, "config": config}
    return {"guard": name, "folder": str(folder), **facts}


def _facts_table(title: str, values: dict[str, Any]) -> None:
    table = new_table(title, "what", "value")
    for key, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        table.add_row(escape(key.replace("_", " ")), escape(text))
    console.print(table)
