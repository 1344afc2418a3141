"""Writes docs/licences.md: the licence of every package that saferedir's extras install, as the packages themselves say.

Run: python -m tools.licences
Reads what is installed; a package that is not is listed as such, so run it where all extras are.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
_HEAD = """# Licences of dependencies

Made by `python -m tools.licences` from what the installed packages say of themselves; nobody has reviewed it, and it is no
legal advice.
"core" is what saferedir always installs; the other words are its [extras](extras.md). saferedir itself is under Apache-2.0.

| package | version | licence, in its words | needed by |
|---|---|---|---|
"""
#: only for work on saferedir itself
_NOT_SHIPPED = {"dev", "docs"}


def groups() -> dict[str, list[str]]:
    """ "core" and every extra -> its requirements, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: rows for name, rows in project["optional-dependencies"].items() if name not in _NOT_SHIPPED}
    return {"core": project["dependencies"], **extras}


def installed(name: str) -> Distribution | None:
    """A package that is there."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def closure(requirements: Iterable[str]) -> Iterator[str]:
    """Names of all packages that requirements lead to on this machine."""
    waiting, done = [Requirement(text) for text in requirements], set[str]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        if name in done:
            continue
        done.add(name)
        yield name
        found = installed(name)
        for text in (found.requires or []) if found is not None else []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                waiting.append(needed)


def licence_of(package: Distribution) -> str:
    """The SPDX expression, else the classifiers, else the first line of the field."""
    facts: Any = package.metadata  # a mapping, though not by its type
    if expression := facts.get("License-Expression"):
        return str(expression)
    classifiers = [
        row.rpartition(" :: ")[2] for row in facts.get_all("Classifier") or [] if row.startswith("License ::")
    ]
    if classifiers := [row for row in classifiers if row != "OSI Approved"]:
        return ", ".join(classifiers)
    first = str(facts.get("License") or "").strip().partition("\n")[0]
    return first[:80] or "not said"


def table() -> str:
    """The page."""
    needed: dict[str, list[str]] = {}
    for group, requirements in groups().items():
        for name in closure(requirements):
            needed.setdefault(name, []).append(group)
    rows = []
    for name, by in sorted(needed.items()):
        package = installed(name)
        version, licence = ("–", "not installed here") if package is None else (package.version, licence_of(package))
        users = ["core"] if "core" in by else by
        rows.append(f"| {name} | {version} | {re.sub('[|]', '/', licence)} | {', '.join(users)} |\n")
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(table(), encoding="utf-8")
