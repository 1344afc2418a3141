"""Every code block of README and docs: Python names exist, quick pages run, commands are read by the command line itself."""

from __future__ import annotations

import ast
import builtins
import json
import re
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from tests.conftest import generate, make_pipeline
from tests.documentation.checker import Checker, parse
from tests.documentation.pages import PAGES, ROOT, Block, blocks, commands, name_of, spans

import saferedir as sr
from saferedir.cli import app
from saferedir.judges.selftest import selftest
from saferedir.prompts import ConceptPrompts, PromptItem, PromptSet

#: what a page's snippets take for granted because the file that they go into has it
GIVEN = {
    "CONTRIBUTING.md": "from saferedir.judges.registry import RegisteredJudge\n"
    "from tests.contract.guards import GuardCase, by_config\n"
    "register = Capitals = print  # each table has a `register` of its own",
    "docs/pipelines.md": "from saferedir.pipelines.families import Family\nfrom tests.tiny import dits\n"
    "from tests.tiny_pipelines import HEIGHT, WIDTH, PipelineCase",
}
#: modules that a reader has made on an earlier part of the page
READERS_OWN = ("star_rate",)
#: pages that run from top to bottom, in some seconds, with fewer steps
RUN = (
    "README.md",
    "docs/tutorial.md",
    "docs/stacks.md",
    "docs/judges.md",
    "docs/howto/verify-with-a-judge.md",
    "docs/howto/choose-a-method.md",
)
STEPS = "num_inference_steps=10"

by_page = pytest.mark.parametrize("page", PAGES, ids=name_of)
python = [page for page in PAGES if blocks(page, "python")]
shell = [block for page in PAGES for block in blocks(page, "sh", "bash")]


class Page(Checker):
    """A checker that goes on from block to block, and says which names no block before has defined."""

    def __init__(self, page: Path) -> None:
        namespace: dict[str, Any] = {}
        exec(GIVEN.get(name_of(page), ""), namespace)
        super().__init__(namespace)
        self.defined = {*dir(builtins), "__name__", *namespace}

    def read(self, block: Block) -> None:
        tree = ast.parse(block.source, str(block))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._execute(node)
            self.defined |= set(_names_of(node))
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in self.defined:
                self.problems.append(f"{block}: {node.id} is not defined by then")
        before = len(self.problems)
        self.visit(tree)
        self.problems[before:] = [f"{block}: {problem}" for problem in self.problems[before:]]

    def _execute(self, node: ast.Import | ast.ImportFrom) -> None:
        module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        if module in READERS_OWN:
            self.defined.add(module)
        elif module != "__future__":
            exec(compile(ast.Module([node], []), "<import>", "exec"), self.values)
            self.defined |= set(self.values)


def _names_of(node: ast.AST) -> Iterator[str]:
    """Names that a node binds."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name


@pytest.mark.parametrize("page", python, ids=name_of)
def test_python_names_and_keywords_exist(page: Path) -> None:
    checker = Page(page)
    for block in blocks(page, "python"):
        checker.read(block)
    assert not checker.problems


@pytest.mark.parametrize("name", RUN)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quick_pages_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.print", lambda *words, **how: None)
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(ROOT / name, "python"):
        if "http://127.0.0.1:8000" in block.source:  # run against a service in tests/server/test_embedded.py
            continue
        source = re.sub(r"num_inference_steps=\d+", STEPS, block.source)
        exec(compile(source, str(block), "exec"), namespace)


# --- commands
# ------------------------------------------------------------------------------------------------------------


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def problem_of(words: list[str]) -> str:
    """Why a command of a page cannot be what it says, "" where nothing is known against it."""
    name, rest = Path(words[0]).name, words[1:]
    if name == "saferedir":
        try:
            parse(rest)
        except typer.Exit:  # --help, --version
            return ""
        except Exception as error:
            return getattr(error, "message", "") or str(error) or type(error).__name__
    elif name == "make":
        missing = [word for word in rest if "=" not in word and word not in make_targets()]
        return f"no target {missing[0]}" if missing else ""
    elif name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        asked = {extra for word in rest for found in re.findall(r"\.\[(.*)\]", word) for extra in found.split(",")}
        return f"no extra {asked - set(extras)}" if asked - set(extras) else ""
    elif name.startswith("python"):
        module = rest[rest.index("-m") + 1] if "-m" in rest else ""
        here = {"pytest": "tests", "": rest[0]}.get(module, module.replace(".", "/"))
        is_there = (ROOT / here).exists() or (ROOT / f"{here}.py").is_file() or here in ("-", "star_rate.py")
        return "" if is_there else f"no file {here}"
    return ""


@pytest.mark.parametrize("block", shell, ids=str)
def test_commands_are_understood(block: Block) -> None:
    found = list(commands(block))
    assert found
    assert not {" ".join(words): why for words in found if (why := problem_of(words))}


def unknown_part(words: list[str]) -> str:
    """The first command or option of a `saferedir …` within a sentence that does not exist; the rest may be cut short."""
    command: Any = typer.main.get_command(app)
    for word in words[1:]:
        if word.startswith("--"):
            options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
            if word.split("=")[0].rstrip(".,;…") not in {*options, "--help"}:
                return word
        elif hasattr(command, "commands"):
            choices = word.split("|")
            missing = [choice for choice in choices if choice not in command.commands]
            if missing:
                return missing[0] if word not in ("…", "...") else ""
            if len(choices) > 1:
                return ""
            command = command.commands[word]
    return ""


@by_page
def test_commands_within_sentences_exist(page: Path) -> None:
    assert not {" ".join(words): part for words in spans(page) if (part := unknown_part(words))}


# --- data
# ------------------------------------------------------------------------------------------------------------


@by_page
def test_toml_and_json_can_be_read(page: Path) -> None:
    for block in blocks(page, "toml"):
        tomllib.loads(block.source)
    for block in blocks(page, "json"):
        json.loads(block.source)


def whole_matrices() -> list[Block]:
    found = [block for page in PAGES for block in blocks(page, "toml")]
    return [block for block in found if {"model", "concept", "guard"} <= set(tomllib.loads(block.source))]


@pytest.mark.parametrize("block", whole_matrices(), ids=str)
def test_whole_matrices_of_pages_are_matrices(block: Block, tmp_path: Path) -> None:
    from saferedir.bench.planning.config import read_matrix

    (tmp_path / "matrix.toml").write_text(block.source, encoding="utf-8")
    assert read_matrix(tmp_path / "matrix.toml").title


# --- the examples of CONTRIBUTING.md are what they are said to be
# ------------------------------------------------------------------------------------------------------------


def contributed(name: str) -> Any:
    """The class of that name of CONTRIBUTING.md, its block run as a module of its own."""
    (block,) = [block for block in blocks(ROOT / "CONTRIBUTING.md", "python") if f"class {name}(" in block.source]
    module = types.ModuleType(f"contributed_{name.lower()}")
    sys.modules[module.__name__] = module  # dataclasses look their annotations up there
    exec(compile(block.source, str(block), "exec"), module.__dict__)
    return getattr(module, name)


def test_the_guard_of_contributing_is_idle_at_zero_and_acts_else(pipe: Any) -> None:
    cls = contributed("Fade")
    bare = generate(pipe)
    for strength in (0.0, 0.5):
        with sr.attach(pipe, cls(cls.config_class(concept="star", strength=strength))) as attached:
            guarded = generate(pipe)
        assert torch.equal(guarded, bare) == (strength == 0)
        assert attached.decisions[0].fired == (strength > 0)
    assert torch.equal(generate(make_pipeline()), generate(pipe))
    with pytest.raises(sr.GuardConfigError, match="strength is 2"):
        cls.config_class(concept="star", strength=2)


def test_the_judge_of_contributing_keeps_the_contract() -> None:
    judge = contributed("BrightnessJudge")()
    assert all(check.passed for check in selftest(judge))
    assert judge(torch.full((2, 3, 8, 8), 0.25)).column("bright").tolist() == [0.25, 0.25]


def test_the_attack_of_contributing_changes_texts_only() -> None:
    items = (PromptItem("a red star", {"colour": "red"}, seed=3), PromptItem("stars"))
    (found,) = contributed("Capitals")().prompts(ConceptPrompts(PromptSet("forget", items, "own"))).values()
    assert found.texts == ["A RED STAR", "STARS"]
    assert (found.items[0].expected, found.items[0].seed) == ({"colour": "red"}, 3)


# --- the checks themselves
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import saferedir as sr\nsr.no_such_name(1)", "sr.no_such_name does not exist"),
        ("import saferedir as sr\nsr.attach(1, 2, strength=3)", "strength"),
        ("print(images)", "images is not defined"),
    ],
)
def test_the_checker_sees_mistakes_of_a_page(source: str, what: str) -> None:
    checker = Page(ROOT / "README.md")
    checker.read(Block(ROOT / "README.md", "python", source, 1))
    assert any(what in problem for problem in checker.problems)


@pytest.mark.parametrize(
    "command",
    [
        "saferedir paint x",
        "saferedir guards show",
        "saferedir generate x --out y --no-such-option",
        "make nothing",
        "python benchmarks/nothing.py",
        "pip install -e .[nothing]",
    ],
)
def test_the_checker_sees_mistakes_of_a_command(command: str) -> None:
    assert problem_of(command.split())


@pytest.mark.parametrize("span", ["saferedir paint", "saferedir bench run --paint", "saferedir guards show|paint"])
def test_the_checker_sees_mistakes_within_a_sentence(span: str) -> None:
    assert unknown_part(span.split())
