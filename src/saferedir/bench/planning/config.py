"""Reading a matrix, a TOML file, and checking it before any time is spent. Needs the extra `bench`.

`read_matrix` gives a frozen `Matrix` (matrix.py); config_checks.py checks it; plan.py turns it into work.
Presets are the TOML files in presets/.
"""

from __future__ import annotations

import itertools
import re
import tomllib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from saferedir.bench.planning.config_checks import check_matrix
from saferedir.bench.planning.matrix import (
    ConceptEntry,
    EncoderEntry,
    FileEntry,
    GuardEntry,
    JudgeEntry,
    Matrix,
    ModelEntry,
    PromptLimits,
)
from saferedir.bench.planning.validation import validated
from saferedir.errors import BenchError
from saferedir.utils.names import unknown_name_message
from saferedir.utils.places import HUB, hub_id
from saferedir.utils.renamed import old_argument
from saferedir.utils.text_files import read_text

__all__ = [
    "PRESETS",
    "ConceptEntry",
    "EncoderEntry",
    "FileEntry",
    "GuardEntry",
    "JudgeEntry",
    "PromptLimits",
    "Matrix",
    "ModelEntry",
    "Preset",
    "matrix_path",
    "preset_names",
    "presets",
    "read_judges",
    "read_matrix",
]

PRESETS = Path(__file__).parent.parent / "presets"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_-]*)\}")


def preset_names() -> list[str]:
    """Matrix files that come with the library."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


class Preset(NamedTuple):
    """A matrix file that comes with the library.

    Attributes:
        name: to run it by.
        title: what it measures.
        needs: what it needs from the caller, name -> in words (`--with NAME=VALUE`).
    """

    name: str
    title: str
    needs: dict[str, str]


def presets() -> list[Preset]:
    """All presets, by name."""
    files = [tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8")) for name in preset_names()]
    return [
        Preset(name, values["title"], values.get("needs", {}))
        for name, values in zip(preset_names(), files, strict=True)
    ]


def matrix_path(name: str) -> Path:
    """A file by its path, or a preset by its name."""
    path = Path(name).expanduser()
    if path.suffix == ".toml":
        if not path.is_file():
            raise BenchError(
                f"there is no file {name}; give a matrix in TOML, or a preset: {', '.join(preset_names())}."
            )
        return path
    if name not in preset_names():
        raise BenchError(
            unknown_name_message("bench preset", name, preset_names()) + " A file of your own must end in .toml."
        )
    return PRESETS / f"{name}.toml"


def read_matrix(name: str, given: Mapping[str, str] | None = None) -> Matrix:
    """Read a file or preset; `given` answers what it needs (`--with model=PATH`).

    Raises BenchError with one sentence: no TOML, an unknown key (with the nearest known one), something needed but not given.
    """
    path = matrix_path(name)
    text = read_text(path, error=BenchError)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BenchError(f"{path.name} is no TOML: {error}.") from error
    values = _filled_in(values, dict(given or {}), name)
    matrix = validated(Matrix, values, path.name)
    check_matrix(matrix, path.name)
    base = Path.cwd() if path.parent == PRESETS else path.parent
    concepts = {name: _absolute(entry, base) for name, entry in matrix.concept.items()}
    guards = {
        name: entry.model_copy(
            update={
                "trained_on": [str(base / Path(file).expanduser()) for file in entry.trained_on],
                "load": None if entry.load is None else _place(entry.load, base),
            }
        )
        for name, entry in matrix.guard.items()
    }
    models = {name: _model_places(entry, base) for name, entry in matrix.model.items()}
    encoders = {
        name: entry.model_copy(update={"reference": str(base / Path(entry.reference).expanduser())})
        if entry.reference is not None
        else entry
        for name, entry in matrix.encoder.items()
    }
    return matrix.model_copy(update={"concept": concepts, "guard": guards, "encoder": encoders, "model": models})


@old_argument("path", "file")
def read_judges(file: str | Path) -> dict[str, JudgeEntry]:
    """Concept -> judge, from a TOML file with a section for each concept:

    [star]
    name = "pictoworld"
    rule = {kind = "AnyAbove", labels = ["shape:star"], threshold = 0.3}
    """
    path = Path(file)
    text = read_text(path.expanduser(), error=BenchError)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BenchError(f"{path.name} is no TOML: {error}.") from error
    entries = {concept: validated(JudgeEntry, section, path.name) for concept, section in values.items()}
    for concept, entry in entries.items():
        if (entry.preset is None) == (entry.rule is None):
            raise BenchError(f"{path.name}: [{concept}] must have either a `preset` or a `rule`.")
    return entries


def _filled_in(values: dict[str, Any], given: Mapping[str, str], name: str) -> dict[str, Any]:
    needs = values.get("needs", {})
    needs = needs if isinstance(needs, Mapping) else {}
    extra = sorted(set(given) - set(needs))
    if extra:
        raise BenchError(unknown_name_message("need", extra[0], needs))
    missing = [f"--with {key}=… ({what})" for key, what in needs.items() if key not in given]
    if missing:
        raise BenchError(f"{name} needs what only you can bring: {'; '.join(missing)}.")

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return _VARIABLE.sub(lambda match: answer(match[1]), value)
        if isinstance(value, Mapping):
            return {key: fill(entry) for key, entry in value.items()}
        return [fill(entry) for entry in value] if isinstance(value, list) else value

    def answer(variable: str) -> str:
        if variable not in given:
            raise BenchError(f"{name} uses ${{{variable}}}, but its [needs] does not say what that is.")
        return given[variable]

    return {key: value if key == "needs" else fill(value) for key, value in values.items()}


def _model_places(entry: ModelEntry, base: Path) -> ModelEntry:
    """A model with its files relative to the matrix file."""
    fixed = {
        "load": _place(entry.load, base),
        "config": None if entry.config is None else _place(entry.config, base),
        "loras": [lora.model_copy(update={"load": _place(lora.load, base)}) for lora in entry.loras],
    }
    return entry.model_copy(update=fixed)


def _place(name: str, base: Path) -> str:
    """A model or guard relative to the matrix file, as its other files are; a name that is no folder there stays as it is.

    Folders that are found from the current folder only, as earlier versions looked for them, are taken with a warning.
    """
    if base.resolve() == Path.cwd():
        return name
    path = Path(name).expanduser()
    shared = list(itertools.takewhile(lambda part: "{" not in part, path.parts))  # of "guards/{concept}": "guards"
    if path.is_absolute() or name.startswith(HUB) or not shared or shared[0] == "pictoworld":
        return name
    if base.joinpath(*shared).exists():
        return str(base / path)
    if Path(*shared).exists():
        warnings.warn(
            f"{name} is found from the current folder, not beside the matrix file; write it relative to the matrix.",
            stacklevel=3,
        )
        return str(path.absolute())
    is_path = "/" in name and hub_id(name.replace("{", "").replace("}", "")) is None
    return str(base / path) if is_path else name


def _absolute(concept: ConceptEntry, base: Path) -> ConceptEntry:
    """File names relative to the matrix file."""

    def fixed(entry: FileEntry | None) -> FileEntry | None:
        return None if entry is None else entry.model_copy(update={"file": str(base / Path(entry.file).expanduser())})

    single = {name: fixed(getattr(concept, name)) for name in ("forget", "retain", "look_alikes", "without")}
    many = {name: {k: fixed(v) for k, v in getattr(concept, name).items()} for name in ("rephrased", "neighbours")}
    return concept.model_copy(update=single | many)
