"""Rules turn raw scores into yes or no: frozen, comparable, plain data on disk.

A preset (presets.py) is a rule with the paper it comes from.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saferedir.errors import JudgeError
from saferedir.judges.base import Judge, Scores


class Rule(ABC):
    """Scores of N images to (N,) bool; an image that was never made is never positive."""

    @abstractmethod
    def positive(self, scores: Scores) -> Tensor:
        """(N,) bool, without thought for missing images."""

    def decide(self, scores: Scores) -> Tensor:
        """(N,) bool."""
        return self.positive(scores) & ~scores.is_missing

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the rule's kind and its fields."""
        return {"kind": type(self).__name__, **{name: _plain(getattr(self, name)) for name in fields_of(type(self))}}


def fields_of(kind: type[Rule]) -> list[str]:
    """Names of the fields of a kind of rule, all of which are dataclasses."""
    return [entry.name for entry in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _plain(value: Any) -> Any:
    if isinstance(value, Rule):
        return value.to_dict()
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class AnyAbove(Rule):
    """Any of the labels scores above the threshold: > if `strict`, else >=."""

    labels: tuple[str, ...]
    threshold: float
    strict: bool = True

    def positive(self, scores: Scores) -> Tensor:
        columns = torch.stack([scores.column(label) for label in self.labels], dim=1)
        return ((columns > self.threshold) if self.strict else (columns >= self.threshold)).any(dim=1)


@dataclass(frozen=True)
class InTop(Rule):
    """The value is among the k highest scores of its label group."""

    group: str
    value: str
    k: int = 1

    def positive(self, scores: Scores) -> Tensor:
        values, columns = scores.group(self.group)
        if self.value not in values:
            raise JudgeError(f"label group {self.group!r} has no value {self.value!r}; known: {', '.join(values)}.")
        highest = columns.nan_to_num(0.0).topk(min(self.k, len(values)), dim=1).indices
        return (highest == values.index(self.value)).any(dim=1)


@dataclass(frozen=True)
class AllOf(Rule):
    """Every one of the rules."""

    rules: tuple[Rule, ...]

    def positive(self, scores: Scores) -> Tensor:
        out = torch.ones(len(scores), dtype=torch.bool)
        for rule in self.rules:
            out = out & rule.positive(scores)
        return out


@dataclass(frozen=True)
class AnyOf(Rule):
    """One of the rules or more; no rules: never."""

    rules: tuple[Rule, ...]

    def positive(self, scores: Scores) -> Tensor:
        out = torch.zeros(len(scores), dtype=torch.bool)
        for rule in self.rules:
            out = out | rule.positive(scores)
        return out


@dataclass(frozen=True)
class Unless(Rule):
    """The first rule, but not where the veto holds: a wrecked image is neither an attack's success nor a kept image."""

    rule: Rule
    veto: Rule

    def positive(self, scores: Scores) -> Tensor:
        return self.rule.positive(scores) & ~self.veto.positive(scores)


def deciding_facts(judge: Judge, rule: Rule) -> dict[str, Any]:
    """All that fixes a judge's verdicts, as plain data: its name, its facts (the checksum of its weights is one), the rule."""
    return {"judge": judge.name, "facts": judge.facts(), "rule": rule.to_dict()}


def without_veto(rule: Rule) -> Rule:
    """The rule with every `Unless` replaced by what it restricts: for a verifier, which must not overlook a wrecked image."""
    if isinstance(rule, Unless):
        return without_veto(rule.rule)
    return type(rule)(tuple(map(without_veto, rule.rules))) if isinstance(rule, AllOf | AnyOf) else rule


KINDS: Mapping[str, type[Rule]] = {rule.__name__: rule for rule in (AnyAbove, InTop, AllOf, AnyOf, Unless)}


def rule_from_dict(values: Mapping[str, Any]) -> Rule:
    """Inverse of `Rule.to_dict`; an unknown kind or field is one clear sentence."""
    rest = dict(values)
    kind = rest.pop("kind", None)
    if kind not in KINDS:
        raise JudgeError(f"there is no rule {kind!r}; known: {', '.join(KINDS)}.")
    rest = {name: _thing(value) for name, value in rest.items()}
    try:
        return KINDS[kind](**rest)
    except TypeError as error:
        known = ", ".join(fields_of(KINDS[kind]))
        raise JudgeError(f"rule {kind!r} takes the fields {known}; found {', '.join(rest) or 'none'}.") from error


def _thing(value: Any) -> Any:
    if isinstance(value, Mapping):
        return rule_from_dict(value)
    return tuple(_thing(entry) for entry in value) if isinstance(value, list) else value
