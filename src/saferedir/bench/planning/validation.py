"""Settings from outside, checked by pydantic: the first fault as a sentence, with the nearest known key. Needs `bench`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from saferedir.errors import BenchError
from saferedir.utils.extras import require_extra
from saferedir.utils.names import unknown_name_message

require_extra("pydantic", "bench", "the bench")
from pydantic import BaseModel, ValidationError  # noqa: E402 - after the sentence about the extra

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], values: Any, where: str) -> Model:
    """An instance of a pydantic model; BenchError "WHERE: SENTENCE" at the first thing that is wrong in the values."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise BenchError(f"{where}: {_sentence(error, model)}") from error


def _sentence(error: ValidationError, top: type[BaseModel]) -> str:
    """The first problem, in words, with the nearest known key."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        parent = ".".join(str(part) for part in first["loc"][:-1]) or "the top level"
        return f"at {parent}, {unknown_name_message('key', str(first['loc'][-1]), _keys_at(top, first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"{where} is missing."
    if first["type"] == "model_type":
        return f"{where} is {first['input']!r}, expected a table of {', '.join(_keys_at(top, first['loc']))}."
    return f"{where} is {first['input']!r}: {first['msg'].lower()}."


def _keys_at(section: Any, path: Sequence[Any]) -> list[str]:
    """Known keys of the section at a path within the file."""
    for part in path:
        fields = getattr(section, "model_fields", None)
        if fields is not None and part in fields:
            section = fields[part].annotation
        inner = [entry for entry in _parts_of(section) if isinstance(entry, type) and issubclass(entry, BaseModel)]
        section = inner[0] if inner else section
    return sorted(getattr(section, "model_fields", {}))


def _parts_of(annotation: Any) -> list[Any]:
    """An annotation and all that it is made of."""
    return [annotation, *(part for argument in getattr(annotation, "__args__", ()) for part in _parts_of(argument))]
