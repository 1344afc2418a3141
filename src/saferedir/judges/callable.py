"""A judge of your own: any function from images to numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from saferedir.errors import JudgeError
from saferedir.judges.base import Judge


def load_function(location: str) -> Callable[..., Any]:
    """The function "module:name", the module being importable or a file of the current folder.

    What it takes is the caller's matter: tensors here, PIL images where `saferedir train duo` filters its pairs.

    Raises:
        JudgeError: another form, no such module, or nothing callable of that name in it.
    """
    module, colon, name = location.partition(":")
    if not (module and colon and name) or module.startswith("."):
        raise JudgeError(f"{location!r} is not of the form module:function.")
    here = str(Path.cwd())
    # A console script does not look for modules in the current folder, where a user's own file lies.
    sys.path.append(here)
    try:
        target: Any = import_module(module)
    except ImportError as error:
        raise JudgeError(f"the module {module!r} of {location!r} cannot be imported: {error}.") from error
    finally:
        sys.path.remove(here)
    for part in name.split("."):
        target = getattr(target, part, None)
    if not callable(target):
        raise JudgeError(f"the module {module!r} has no function {name!r}.")
    function: Callable[..., Any] = target
    return function


def as_function(option: str, given: Any) -> Callable[..., Any]:
    """The value of an option: a function, or "module:function"; JudgeError for anything else."""
    if not isinstance(given, str) and not callable(given):
        raise JudgeError(f'{option} is {given!r}, expected "module:function" (or, in Python, a function).')
    return load_function(given) if isinstance(given, str) else given


def location_of(given: Callable[..., Any] | str) -> str:
    """How a function, or "module:function", is called in records."""
    if isinstance(given, str):
        return given
    return f"{getattr(given, '__module__', '')}:{getattr(given, '__qualname__', type(given).__name__)}"


class CallableJudge(Judge):
    """Calls `function` with (B, 3, H, W) float32 RGB images in [0, 1]; it returns (B, L) scores, or (B,) for one label.

    The function must be deterministic and score each image by itself; `saferedir.judges.selftest` checks both.

    Args:
        function: the function, or "module:function".
        labels: names of the score columns; "group:value" labels compete within their group.
        name: the name of the judge in its facts, by default the function's own.
        version: of the function, recorded with the scores; change it when the function changes.

    Raises:
        JudgeError: no such function, no label, or a label twice.
    """

    name = "callable"

    def __init__(
        self,
        function: Callable[[Tensor], Tensor] | str,
        labels: Sequence[str] | str,
        *,
        name: str = "",
        version: str = "unversioned",
    ) -> None:
        if not isinstance(labels, str) and not (
            isinstance(labels, Sequence) and all(isinstance(label, str) for label in labels)
        ):
            raise JudgeError(f"labels is {labels!r}, expected a text or a list of texts.")
        self.labels = (labels,) if isinstance(labels, str) else tuple(labels)
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise JudgeError(f"a judge of your own needs distinct labels; found {', '.join(self.labels) or 'none'}.")
        self.function = as_function("function", function)
        self.location = location_of(function)
        self.id = name or self.location
        self.version = version

    def score(self, images: Tensor) -> Tensor:
        scores = self.function(images)
        wanted = (len(images), len(self.labels))
        if isinstance(scores, Tensor) and scores.ndim == 1 and len(self.labels) == 1:
            scores = scores[:, None]
        if not isinstance(scores, Tensor) or tuple(scores.shape) != wanted:
            actual = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise JudgeError(f"judge {self.id!r} returned {actual}, expected a tensor of shape {wanted}.")
        if not bool(scores.isfinite().all()):
            raise JudgeError(f"judge {self.id!r} returned a score that is not finite.")
        return scores

    def facts(self) -> dict[str, Any]:
        return {
            "id": self.id,
            **({"function": self.location} if self.id != self.location else {}),
            "weights": "unknown",
            "channels": "RGB",
            "resize": "none",
            "floor": None,
            "version": self.version,
        }
