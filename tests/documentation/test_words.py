"""Words that the code gave up for those of the field are gone, from names and from sentences; renamed.py has the old spellings.

Names are compared whole and in their parts ("stored_pictures"), sentences are docstrings, messages, help texts, comments and the
report's templates.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "saferedir"
#: a whole name that was given up -> what it is called now
GIVEN_UP = {
    "Apart": "SecondLatents",
    "Encoded": "PromptEmbeds",
    "Riding": "GuardRows",
    "riding": "extra_rows",
    "is_aside": "is_auxiliary",
    "beside_denoiser": "before_auxiliary",
    "settings_of_caller": "arguments_of_running_call",
    "CurrentRun": "RunState",
    "is_tripped": "was_detached",
    "calibrating": "calibrate",
    "looking": "rescore",
    "unfitting": "bad_options_message",
    "HIGHEST_RATE": "MAX_CONCEPT_RATE",
    "LEAST_KEPT": "MIN_RETENTION",
    "MOST_REFUSED": "MAX_REFUSAL_RATE",
}
#: a word that no name may have among its parts -> what to say
PARTS = {
    "riding": "extra rows",
    "riders": "extra rows",
    "insist": "retry level",
    "companions": "conditioned modules",
    "tower": "text encoder",
    "towers": "text encoders",
    "caution": "warning text",
    "cautions": "prompt warnings",
    "rejudging": "rejudge",
    "draw": "generate, sample",
    "draws": "images per prompt",
    "drawn": "generated",
    "drawing": "generate",
    "drawings": "image sets",
    "seen": "scored, observed",
    "seeing": "score",
    "told": "named after its value",
    "picture": "image",
    "pictures": "images",
}
#: dialect of local variables: what the value is, is the name
DIALECT = {"found", "place", "own", "told", "said", "one", "worth"}
#: words that no sentence may have -> what to say
SENTENCES = {
    **{word: PARTS[word] for word in PARTS if word not in ("riding", "draws")},
    "drew": "generated",
    "draws": "generates",
    "second eye": "independent check",
    "second look": "checked again",
}

#: names that go on working or that old files have; Pillow's; and one verb
OLD_NAMES = {
    "attach.py": {"insist"},
    "bench/records.py": {"drawings", "draws", "pictures"},
    "bench/report/plots/labels.py": {"place"},
    "guards/base.py": {"caution"},
    "guards/step.py": {"insist", "towers"},
    "interop/eval_unlearn.py": {"place"},
    "pipelines/families/facts.py": {"companions", "towers"},
    "target/target.py": {"draw", "towers"},
    "utils/figures.py": {"Draw", "ImageDraw", "draw"},
}
#: sentences that say an old name, or the field's own word
OLD_SENTENCES = {
    "attach.py": {"insist"},  # the warning of the old name
    "bench/planning/matrix.py": {"draws"},  # the old key of a matrix
    "bench/records.py": {"draws"},  # the old key of a record
    "bench/schema.py": {"draws", "drawings", "picture", "pictures"},  # the keys of schema 1
    "bench/storage/store.py": {"drawings"},  # the folder of schema 1
    "cli/bench.py": {"pictures"},  # the old option
    "guards/base.py": {"caution"},
    "guards/step.py": {"insist", "towers"},
    "metrics/forgetting.py": {"draws"},
    "pictoworld/methods.py": {"drawn", "pictures"},  # a phrase of its prompts; what the packaged sets record
    "target/soft_prompt.py": {"tower"},
    "target/target.py": {"draw", "towers"},
    "training/saferedir/pairs/text.py": {"tower"},  # the Eiffel Tower
    "utils/places.py": {"pictures"},  # a folder's usual name
}
#: lists of prompts, which are in everyday words
PROMPTS = {"pictoworld/captions.py", "pictoworld/phrases.py", "training/saferedir/pairs/templates.py"}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"))


def names_in(module: str) -> set[str]:
    """Every name that a module binds, reads or passes."""
    names: set[str] = set()
    for node in ast.walk(tree_of(module)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.alias(name=name):
                names |= set(name.split("."))
    return names


def sentences_in(module: str) -> list[str]:
    """Every text and comment of a module, and every line of a template."""
    text = (PACKAGE / module).read_text(encoding="utf-8")
    if not module.endswith(".py"):
        return text.splitlines()
    texts = [
        node.value
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    comments = tokenize.generate_tokens(io.StringIO(text).readline)
    return texts + [token.string for token in comments if token.type == tokenize.COMMENT]


def parts_of(name: str) -> set[str]:
    return set(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_"))


def advice(name: str) -> str:
    return f"{name} ({GIVEN_UP.get(name) or PARTS.get(name) or 'name it after its value'})"


def modules(*suffixes: str) -> list[str]:
    files = (path for path in sorted(PACKAGE.rglob("*.*")) if path.suffix in suffixes and path.name != "renamed.py")
    return [path.relative_to(PACKAGE).as_posix() for path in files]


ROOMS = sorted({module.split("/")[0] for module in modules(".py")})


def of_room(room: str, *suffixes: str) -> list[str]:
    return [module for module in modules(*suffixes) if module.split("/")[0] == room]


@pytest.mark.parametrize("room", ROOMS)
def test_names_that_were_given_up_are_gone(room: str) -> None:
    left = [
        f"{module}: {advice(name)}"
        for module in of_room(room, ".py")
        for name in sorted(names_in(module) - OLD_NAMES.get(module, set()))
        if name in GIVEN_UP or name in DIALECT or parts_of(name) & PARTS.keys()
    ]
    assert not left, "; ".join(left)


WORDS = re.compile(rf"(?<![\w-])({'|'.join(SENTENCES)})(?![\w-])", re.IGNORECASE)


def given_up_words(module: str) -> list[tuple[str, str, int]]:
    """(text, word, where in the text) of every such word in a module's sentences."""
    if module in PROMPTS:
        return []
    return [(text, match[0].lower(), match.start()) for text in sentences_in(module) for match in WORDS.finditer(text)]


@pytest.mark.parametrize("room", ROOMS)
def test_sentences_do_without_them_too(room: str) -> None:
    left = [
        f"{module}: {word!r} in {text[max(0, at - 60) : at + 60]!r} (say {SENTENCES[word]})"
        for module in of_room(room, ".py", ".j2")
        for text, word, at in given_up_words(module)
        if word not in OLD_SENTENCES.get(module, set())
    ]
    assert not left, "; ".join(left)


def test_what_is_allowed_is_still_there() -> None:
    for module, names in OLD_NAMES.items():
        assert names <= names_in(module), f"{module}: {sorted(names - names_in(module))} need not be allowed any more"
    for module, words in OLD_SENTENCES.items():
        said = {word for _, word, _ in given_up_words(module)}
        assert words <= said, f"{module}: {sorted(words - said)} need not be allowed any more"


@pytest.mark.parametrize("name", ["stored_pictures", "DrawnSet", "is_seen", "text_towers"])
def test_parts_of_a_name_count(name: str) -> None:
    assert parts_of(name) & PARTS.keys()
