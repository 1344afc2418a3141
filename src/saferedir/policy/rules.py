"""Policy: the concepts a service guards against, and what happens with an image that shows one. Read from TOML or JSON.

A policy is plain data: it names guards and loads none until it is asked to. `saferedir.protect(pipe, policy=...)` puts it
around a pipeline; `saferedir policy check|diff` explain it.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

from saferedir.errors import GuardConfigError
from saferedir.policy.allow_list import normalised
from saferedir.utils.checks import Checked, is_int, is_nonempty_str, is_number
from saferedir.utils.names import unknown_name_message

#: what happens with a concept, from the weakest to the strictest
ACTIONS = ("off", "log", "redirect", "verify", "block")


def strictest(*actions: str) -> str:
    """The strictest of some actions."""
    return max(actions, key=ACTIONS.index)


@dataclass(frozen=True, kw_only=True)
class ConceptRule(Checked):
    """One concept of a policy.

    Attributes:
        concept: its name in the policy.
        guard: what guards against it: a packaged name, a folder, or a hub id.
        row: the concept's name inside that guard, of a guard of many concepts; those without a rule are off. "": all of them.
        category: the group it is reported under, such as "logos"; "" for none.
        action: "off" does nothing, "log" scores and changes nothing, "redirect" steers, "verify" also checks the finished image,
            generates again and blocks, "block" blocks an image on which the guard acts.
        grades: name -> least score of the guard (the higher of its prompt and image scores), each higher than the one before.
        block_at: the grade from which an image is blocked whatever `action` says; "" for none.
        anchor: the prompt that its guard redirects to in place of what it learned; "" for that. For SafeRedir guards.
        allow: whole prompts that pass the prompt verdict, upper and lower case and white space aside; images are judged as ever.
    """

    concept: str
    guard: str
    category: str = ""
    action: str = "redirect"
    grades: Mapping[str, float] = field(default_factory=dict)
    block_at: str = ""
    row: str = ""
    anchor: str = ""
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.require_text("concept", "guard")
        self.require(isinstance(self.row, str), "row", "the name of a concept")
        is_text = isinstance(self.anchor, str) and (not self.anchor or is_nonempty_str(self.anchor))
        self.require(is_text, "anchor", "a prompt")
        is_list = isinstance(self.allow, list | tuple) and all(is_nonempty_str(text) for text in self.allow)
        self.require(is_list, "allow", "a list of prompts")
        object.__setattr__(self, "allow", tuple(self.allow))
        self.require(isinstance(self.category, str), "category", "a text")
        self.require_choice("action", ACTIONS)
        limits = list(self.grades.values()) if isinstance(self.grades, Mapping) else [""]
        rises = all(map(is_number, limits)) and all(a < b for a, b in pairwise(limits))
        self.require(rises, "grades", "a table of names and numbers, each number higher than the one before")
        known = ", ".join(self.grades) or "none, as there are no grades"
        self.require(self.block_at in ("", *self.grades), "block_at", f"one of the grades ({known})")
        if self.block_at and self.action in ("off", "log"):
            raise GuardConfigError(
                f"the concept {self.concept!r} has block_at, but its action is {self.action}; use redirect."
            )

    def grade(self, score: float | None) -> str:
        """The highest grade whose limit a score reaches; "" for none."""
        reached = [name for name, limit in self.grades.items() if score is not None and score >= limit]
        return reached[-1] if reached else ""

    def blocks(self, grade: str) -> bool:
        """Whether an image of this grade is blocked whatever the action."""
        names = list(self.grades)
        return bool(self.block_at and grade) and names.index(grade) >= names.index(self.block_at)

    def to_dict(self) -> dict[str, Any]:
        """As in a policy file; `row`, `anchor`, `allow` only where set, so that policies without them keep their fingerprint."""
        values = {"guard": self.guard, "category": self.category, "action": self.action, "block_at": self.block_at}
        later = {"row": self.row, "anchor": self.anchor, "allow": list(self.allow)}
        return {**values, "grades": dict(self.grades), **{name: value for name, value in later.items() if value}}


class Change(NamedTuple):
    """One difference of two policies: what, in the first, in the second, and whether the second is weaker there."""

    what: str
    before: str
    after: str
    is_weaker: bool


@dataclass(frozen=True, kw_only=True)
class Policy(Checked):
    """Concepts with their rules, and profiles that are stricter for some callers.

    Attributes:
        name: what it is called in records.
        version: raised by whoever changes it, >= 1.
        concepts: the rules, in the order in which the guards act.
        profiles: name -> concept or category or "*" -> action, never weaker than the concept's own.

    Example:
        >>> import saferedir as sr
        >>> policy = sr.Policy.from_dict({
        ...     "name": "shop", "version": 1,
        ...     "concepts": {"star": {"guard": "pictoworld/star", "category": "logos", "action": "redirect"}},
        ...     "profiles": {"children": {"logos": "block"}},
        ... })
        >>> policy.for_profile("children").concepts[0].action
        'block'
        >>> policy.stricter({"star": "log"})
        Traceback (most recent call last):
        ...
        saferedir.errors.GuardConfigError: 'star' is at redirect; log is weaker, and only a stricter action may be asked for.
    """

    name: str
    version: int
    concepts: tuple[ConceptRule, ...]
    profiles: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.require_text("name")
        self.require_whole("version", at_least=1)
        if not self.concepts:
            raise GuardConfigError(f"the policy {self.name!r} has no concepts; name one under [concepts.NAME].")
        for guard in dict.fromkeys(rule.guard for rule in self.concepts):
            rows = [rule.row for rule in self.concepts if rule.guard == guard]
            if any(rows) and (not all(rows) or len(set(rows)) < len(rows)):
                raise GuardConfigError(
                    f"the rules of {guard} must each name another row of it, or be one rule without a row, for all of them."
                )
        for profile in self.profiles:
            self.for_profile(profile)

    # --- reading and writing

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a TOML file, or a JSON file by its suffix `.json`. Folders of guards are relative to the file's.

        Raises:
            GuardConfigError: the file cannot be read, or is no policy; the sentence names file and place.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
            values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except (OSError, ValueError) as error:
            raise GuardConfigError(f"{path} cannot be read as a policy ({error}).") from error
        try:
            return cls.from_dict(values, folder=path.parent)
        except GuardConfigError as error:
            raise GuardConfigError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, values: Any, *, folder: Path | None = None) -> Self:
        """Of the tables of a file; GuardConfigError for an unknown or missing key."""
        values = _table(values, "a policy", ("name", "version", "concepts", "categories", "profiles"))
        categories = {
            name: _table(table, f"[categories.{name}]", ("action", "grades", "block_at", "anchor"))
            for name, table in _table(values.get("categories", {}), "[categories]").items()
        }
        rules = []
        for concept, given in _table(values.get("concepts", {}), "[concepts]").items():
            keys = ("guard", "category", "action", "grades", "block_at", "row", "anchor", "allow")
            table = _table(given, f"[concepts.{concept}]", keys)
            if not is_nonempty_str(table.get("guard")):
                raise GuardConfigError(f"[concepts.{concept}] needs a guard: a packaged name, a folder or a hub id.")
            category = table.get("category", "")
            if not isinstance(category, str) or (categories and category not in ("", *categories)):
                raise GuardConfigError(
                    f"[concepts.{concept}] has category {category!r}; expected one of {', '.join(categories) or 'a text'}."
                )
            merged = {**categories.get(category, {}), **table}
            merged["guard"] = _from_folder(table["guard"], folder)
            rules.append(ConceptRule(concept=concept, **merged))
        unused = [name for name in categories if all(rule.category != name for rule in rules)]
        if unused:
            raise GuardConfigError(
                f"[categories.{unused[0]}] is used by no concept; give one category = {unused[0]!r}."
            )
        if not is_int(values.get("version")):
            raise GuardConfigError(f"version is {values.get('version')!r}; expected a whole number >= 1.")
        profiles = {
            name: _table(table, f"[profiles.{name}]")
            for name, table in _table(values.get("profiles", {}), "[profiles]").items()
        }
        return cls(name=values.get("name", ""), version=values["version"], concepts=tuple(rules), profiles=profiles)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads; what categories said stands with the concepts."""
        concepts = {rule.concept: rule.to_dict() for rule in self.concepts}
        profiles = {name: dict(actions) for name, actions in self.profiles.items()}
        return {"name": self.name, "version": self.version, "concepts": concepts, "profiles": profiles}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the policy's content, in hexadecimal; the order of concepts counts, that of keys does not."""
        content = {**self.to_dict(), "order": [rule.concept for rule in self.concepts]}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    # --- stricter, never weaker

    def stricter(self, actions: Mapping[str, str]) -> Self:
        """The policy with stricter actions for some concepts or categories, or for all by "*"; it has no profiles.

        Raises:
            GuardConfigError: a name is unknown, or an action is none or weaker than the policy's own.
        """
        names = {rule.concept for rule in self.concepts} | {rule.category for rule in self.concepts} - {""} | {"*"}
        for name, action in actions.items():
            if name not in names:
                raise GuardConfigError(unknown_name_message("concept or category", name, sorted(names)))
            if action not in ACTIONS:
                raise GuardConfigError(f"the action for {name!r} is {action!r}; expected one of {', '.join(ACTIONS)}.")
        rules = []
        for rule in self.concepts:
            asked = [(name, actions[name]) for name in ("*", rule.category, rule.concept) if name in actions]
            weaker = next((action for name, action in asked if name == rule.concept and _is_weaker(action, rule)), None)
            if weaker is not None:
                raise GuardConfigError(
                    f"{rule.concept!r} is at {rule.action}; {weaker} is weaker, and only a stricter action may be asked for."
                )
            rules.append(replace(rule, action=strictest(rule.action, *(action for _, action in asked))))
        return replace(self, concepts=tuple(rules), profiles={})

    def for_profile(self, name: str) -> Self:
        """The policy as one of its profiles has it; GuardConfigError for an unknown one, or one that is weaker somewhere."""
        if name not in self.profiles:
            raise GuardConfigError(unknown_name_message("profile", name, sorted(self.profiles)))
        try:
            return self.stricter(self.profiles[name])
        except GuardConfigError as error:
            raise GuardConfigError(f"[profiles.{name}]: {error}") from error

    def changes(self, other: Policy) -> list[Change]:
        """What differs in `other`; `is_weaker` marks what lets more through, or may: another guard or anchor is not compared."""
        mine, theirs = ({rule.concept: rule for rule in policy.concepts} for policy in (self, other))
        changes = []
        for concept in dict.fromkeys((*mine, *theirs)):
            before, after = mine.get(concept), theirs.get(concept)
            if before is None or after is None:
                is_weaker = before is not None and before.action != "off"
                changes.append(Change(concept, _shown(before), _shown(after), is_weaker))
                continue
            old_values, new_values = before.to_dict(), after.to_dict()
            for key in dict.fromkeys((*old_values, *new_values)):
                old_value, new_value = old_values.get(key, ""), new_values.get(key, "")
                if old_value != new_value:
                    weaker = _lets_more(before, after, key)
                    changes.append(Change(f"{concept}.{key}", str(old_value), str(new_value), weaker))
        for profile in dict.fromkeys((*self.profiles, *other.profiles)):
            old, new = (
                None if profile not in policy.profiles
                else {rule.concept: rule.action for rule in policy.for_profile(profile).concepts}
                for policy in (self, other)
            )  # fmt: skip
            if old != new or dict(self.profiles.get(profile, {})) != dict(other.profiles.get(profile, {})):
                weaker = old is not None and (new is None or any(_less(new.get(name), old[name]) for name in old))
                changes.append(Change(f"profile {profile}", str(old or "none"), str(new or "none"), weaker))
        for what in ("name", "version"):
            values = getattr(self, what), getattr(other, what)
            if values[0] != values[1]:
                changes.append(Change(what, str(values[0]), str(values[1]), False))
        kept = [[name for name in names if name in mine and name in theirs] for names in (mine, theirs)]
        if kept[0] != kept[1]:
            changes.append(Change("order", ", ".join(kept[0]), ", ".join(kept[1]), False))
        return changes


def _less(action: str | None, before: str) -> bool:
    """Whether an action, None for no guard, is weaker than another."""
    return ACTIONS.index(action or "off") < ACTIONS.index(before)


def _is_weaker(action: str, rule: ConceptRule) -> bool:
    return ACTIONS.index(action) < ACTIONS.index(rule.action)


def _lets_more(before: ConceptRule, after: ConceptRule, key: str) -> bool:
    """Whether a change of one key lets more through, or may: another guard, row of it, or anchor is not compared."""
    if key == "action":
        return _is_weaker(after.action, before)
    if key == "allow":
        return bool(set(map(normalised, after.allow)) - set(map(normalised, before.allow)))
    return key in ("guard", "row", "anchor") or _blocks_less(before, after, key)


def _blocks_less(before: ConceptRule, after: ConceptRule, key: str) -> bool:
    """Whether a change of grades, or of the grade that is blocked, leaves out scores that were blocked."""
    if key not in ("grades", "block_at") or not before.block_at:
        return False
    limit = after.grades[after.block_at] if after.block_at else float("inf")
    return limit > before.grades[before.block_at]


def _shown(rule: ConceptRule | None) -> str:
    return "not guarded" if rule is None else f"{rule.action} by {rule.guard}{f' ({rule.row})' if rule.row else ''}"


def _table(values: Any, where: str, keys: tuple[str, ...] | None = None) -> dict[str, Any]:
    """A table, its keys among `keys`."""
    if not isinstance(values, Mapping):
        raise GuardConfigError(f"{where} is {values!r}; expected a table.")
    unknown = [key for key in values if keys is not None and key not in keys]
    if unknown:
        raise GuardConfigError(f"{where} has {unknown[0]!r}; known keys: {', '.join(keys or ())}.")
    return dict(values)


def _from_folder(guard: str, folder: Path | None) -> str:
    """A guard's folder, where it lies beside the policy file; other names as they are."""
    inside = None if folder is None else folder / guard
    return str(inside) if inside is not None and inside.is_dir() else guard
