"""Words that the code gave up for those of the field are gone from its names; their old spellings live on in renamed.py only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "saferedir"
#: a name that was given up -> what it is called now
GIVEN_UP = {
    "riding": "extra_rows",
    "Riding": "GuardRows",
    "riders": "extra rows",
    "Apart": "SecondLatents",
    "Encoded": "PromptEmbeds",
    "insist": "retry_level",
    "is_aside": "is_auxiliary",
    "beside_denoiser": "before_auxiliary",
    "companions": "conditioned_modules",
    "settings_of_caller": "arguments_of_running_call",
    "CurrentRun": "RunState",
    "is_tripped": "was_detached",
    "TextTower": "TextEncoder",
    "text_towers": "text_encoders",
    "towers": "text_encoders",
    "caution": "warning_text",
    "cautions": "prompt_warnings",
    "drawing": "generate",
    "seeing": "score",
    "looking": "rescore",
    "rejudging": "rejudge",
    "calibrating": "calibrate",
    "unfitting": "bad_options_message",
    "HIGHEST_RATE": "MAX_CONCEPT_RATE",
    "LEAST_KEPT": "MIN_RETENTION",
    "MOST_REFUSED": "MAX_REFUSAL_RATE",
    "picture": "image",
    "pictures": "images",
}
#: dialect of local variables: what the value is, is the name
DIALECT = {"found", "place", "own", "told", "said", "one", "worth", "drawn", "picture", "pictures"}
#: old names that go on working, or that old files have, and one verb
OLD = {
    "attach.py": {"insist"},
    "bench/records.py": {"pictures"},
    "bench/report/plots/labels.py": {"place"},
    "bench/schema.py": {"bystanders", "draws", "pictures"},
    "guards/base.py": {"caution"},
    "guards/step.py": {"insist", "towers"},
    "interop/eval_unlearn.py": {"place"},
    "pipelines/families.py": {"companions", "towers"},
    "target/target.py": {"draw", "towers"},
}


def names_in(path: Path) -> set[str]:
    """Every name that a module binds, reads or passes."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.alias(name=name):
                names |= set(name.split("."))
    return names


def modules() -> list[str]:
    return [path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py")) if path.name != "renamed.py"]


@pytest.mark.parametrize("room", sorted({module.split("/")[0] for module in modules()}))
def test_words_that_were_given_up_are_gone(room: str) -> None:
    words = set(GIVEN_UP) | DIALECT
    for module in (module for module in modules() if module.split("/")[0] == room):
        left = names_in(PACKAGE / module) & words - OLD.get(module, set())
        advice = [f"{name} ({GIVEN_UP.get(name, 'name it after its value')})" for name in sorted(left)]
        assert not left, f"{module}: {', '.join(advice)}"
