"""What a guarded pipeline returns, as a person reads it: image by image, in a terminal and in a notebook."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass, fields
from typing import Any

from PIL import Image

from saferedir.decisions import Decision
from saferedir.utils.images import output_images

_SHOWN = 256  # pixels of a thumbnail's longer side


@dataclass(frozen=True)
class GuardedImage:
    """One image of an output.

    Attributes:
        index: its place in the batch.
        image: as the pipeline returned it (of a video: its frames); blank where it was blocked.
        blocked: whether it was.
        decisions: of all guards on this image.
    """

    index: int
    image: Any
    blocked: bool
    decisions: tuple[Decision, ...]

    def __repr__(self) -> str:
        return f"GuardedImage({self.index}, {'blocked' if self.blocked else 'shown'}, {list(self.decisions)})"

    def _repr_html_(self) -> str:
        lines = [
            f"<b>{html.escape(decision.outcome)}</b> by {html.escape(decision.name or decision.guard)} "
            f"({html.escape(decision.concept)})"
            f"<br><small>{html.escape(decision.scores())}</small>"
            for decision in self.decisions
        ]
        text = "<br>".join(lines) or ("<b>blocked</b>" if self.blocked else "")
        return f'<figure style="margin:0;width:{_SHOWN}px">{_thumbnail(self.image)}<figcaption>{text}</figcaption></figure>'


class GuardedOutput:
    """Mixed into the pipeline's own output: the decisions, and views of them.

    Attributes:
        decisions: one for each image and guard, guard by guard.
        blocked: one bool an image.
        blocked_by: names of those that blocked an image: concepts of guards, names of verifiers; () where it was not blocked.
    """

    decisions: list[Decision]
    blocked: list[bool]
    blocked_by: list[tuple[str, ...]]

    def __reduce__(self) -> tuple[Any, ...]:  # the class is made here, so that nothing finds it by its name
        if isinstance(self, tuple):
            return _restored, (tuple, tuple(self), vars(self))
        output: Any = self
        parts = {entry.name: getattr(self, entry.name) for entry in fields(output)}
        return _restored, (type(self).__mro__[2], parts, vars(self))

    def by_image(self) -> list[GuardedImage]:
        """The output image by image, each with its decisions."""
        images = output_images(self)
        return [
            GuardedImage(
                row, images[row], is_blocked, tuple(decision for decision in self.decisions if decision.image == row)
            )
            for row, is_blocked in enumerate(self.blocked)
        ]

    def __repr__(self) -> str:
        name = type(self).__name__
        if "blocked" not in vars(self):  # a copy that diffusers or a user made by itself
            return f"{name}(not yet judged)"
        blocked = sum(self.blocked)
        head = f"{name}({len(self.blocked)} image{'s' * (len(self.blocked) != 1)}, {blocked} blocked"
        return "\n  ".join([head, *(repr(decision) for decision in self.decisions)]) + ")"

    def _repr_html_(self) -> str:
        cells = "".join(image._repr_html_() for image in self.by_image())
        return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{cells}</div>'


class GuardedTuple(GuardedOutput, tuple[Any, ...]):
    """What a protected pipeline returns with return_dict=False: the pipeline's tuple, with two attributes."""


#: the pipeline's class -> ours
_CLASSES: dict[type[Any], type[Any]] = {}


def guarded_class(kind: type[Any]) -> type[Any]:
    """A subclass of a pipeline's output with `GuardedOutput` mixed in, of the same name."""
    if issubclass(kind, GuardedOutput):
        return kind
    if kind not in _CLASSES:
        _CLASSES[kind] = _subclass(kind)
    return _CLASSES[kind]


def _subclass(kind: type[Any]) -> type[Any]:
    return type(kind.__name__, (GuardedOutput, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def _restored(kind: type[Any], parts: Any, more: dict[str, Any]) -> Any:
    """An output from its pipeline's class, its parts and its attributes; the inverse of `GuardedOutput.__reduce__`."""
    if kind is tuple:
        output: Any = GuardedTuple(parts)
    else:
        output = kind(**parts)
        output.__class__ = guarded_class(kind)
    for name, value in more.items():
        if name not in parts or kind is tuple:
            setattr(output, name, value)
    return output


def _thumbnail(image: Any) -> str:
    """An <img> of a PIL image or of a video's first frame; nothing for other kinds."""
    first = image[0] if isinstance(image, list) and image else image
    if not isinstance(first, Image.Image):
        return ""
    small = first.copy()
    small.thumbnail((_SHOWN, _SHOWN))
    data = io.BytesIO()
    small.convert("RGB").save(data, "PNG")
    return f'<img alt="" style="width:100%" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'
