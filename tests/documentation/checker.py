"""Checks of code that cannot be run here: names, attributes and keywords of ours exist, commands are understood.

Calls of our own functions are bound to their signatures, attributes are looked up on what a call is annotated to return, and
commands are read by the command line's own parser. Used for the pages of examples/ and for the blocks of docs/.
"""

from __future__ import annotations

import ast
import inspect
import re
import typing
from typing import Any

import typer

from saferedir.cli import app
from saferedir.decisions import Decision

UNKNOWN = object()


def is_ours(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).split(".")[0] == "saferedir"


def attributes_of(kind: type) -> set[str]:
    """Names that instances of a class have: its own, annotated ones, and those that its methods set on `self`."""
    found = set(dir(kind))
    for base in kind.__mro__:
        found |= set(getattr(base, "__annotations__", {}))
        if is_ours(base):
            found |= set(re.findall(r"\bself\.(\w+)(?:, self\.\w+)*(?::[^=\n]*)? = ", inspect.getsource(base)))
            found |= set(re.findall(r", self\.(\w+)", inspect.getsource(base)))
    return found


class Checker(ast.NodeVisitor):
    """Walks a page with what is known of its names: modules, functions and classes by value, variables by their class."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.values = namespace
        self.classes: dict[str, Any] = {}
        self.problems: list[str] = []
        self.checked: set[str] = set()

    def value(self, node: ast.expr) -> Any:
        """The object that a dotted name stands for, or UNKNOWN."""
        if isinstance(node, ast.Name):
            return self.values.get(node.id, UNKNOWN)
        if isinstance(node, ast.Attribute):
            owner = self.value(node.value)
            return UNKNOWN if owner is UNKNOWN else getattr(owner, node.attr, UNKNOWN)
        return UNKNOWN

    def result(self, node: ast.expr) -> Any:
        """The class of an expression's value, or UNKNOWN."""
        if isinstance(node, ast.Name):
            return self.classes.get(node.id, UNKNOWN)
        if isinstance(node, ast.IfExp):
            return self.result(node.body)
        if isinstance(node, ast.Call):
            function = self.value(node.func)
            if function is UNKNOWN:  # a variable that is called
                owner = self.result(node.func)
                function = UNKNOWN if owner is UNKNOWN else owner.__call__
            if inspect.isclass(function):
                return function
            if is_ours(function):
                found = typing.get_type_hints(function).get("return", UNKNOWN)
                return found if inspect.isclass(found) and is_ours(found) else UNKNOWN
        return UNKNOWN

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.classes[target.id] = self.result(node.value)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            self.visit(item.context_expr)
            if isinstance(item.optional_vars, ast.Name):
                self.classes[item.optional_vars.id] = self.result(item.context_expr)
        for statement in node.body:
            self.visit(statement)

    def visit_For(self, node: ast.For) -> None:
        names = node.target.elts if isinstance(node.target, ast.Tuple) else [node.target]
        sources = node.iter.args if isinstance(node.iter, ast.Call) and node.iter.args else [node.iter]
        for name, source in zip(names, sources, strict=False):
            if isinstance(name, ast.Name):
                listed = isinstance(source, ast.Attribute) and source.attr == "decisions"
                self.classes[name.id] = Decision if listed else UNKNOWN
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        owner, kind = self.value(node.value), self.result(node.value)
        what = ast.unparse(node)
        if owner is not UNKNOWN:
            self._check(hasattr(owner, node.attr), f"{what} does not exist", what)
        elif kind is not UNKNOWN and is_ours(kind):
            known = attributes_of(kind)
            self._check(
                node.attr in known, f"{what}: {kind.__name__} has no {node.attr}", f"{kind.__name__}.{node.attr}"
            )

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        function = self.value(node.func)
        if function is UNKNOWN or not is_ours(function):
            return
        keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        try:
            inspect.signature(function).bind(*node.args, **keywords)
        except TypeError as error:
            self.problems.append(f"line {node.lineno}: {ast.unparse(node)}: {error}")
        self.checked.add(ast.unparse(node.func))

    def _check(self, is_right: bool, problem: str, what: str) -> None:
        self.checked.add(what)
        if not is_right:
            self.problems.append(problem)


def check(source: str, namespace: dict[str, Any]) -> Checker:
    checker = Checker(dict(namespace))
    checker.visit(ast.parse(source))
    return checker


def parse(words: list[str]) -> dict[str, Any]:
    """A command's options as the command line would read them, without running it; raises on what it does not know or lacks."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return dict(command.make_context(command.name, words).params)
