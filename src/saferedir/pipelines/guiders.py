"""Pipelines that hold a `guider` in the place of an argument `guidance_scale` of their call (HunyuanImage).

Used by trainers, the bench and the command line, which give a guidance scale to whatever pipeline they call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from saferedir.pipelines.text_settings import named_arguments

#: attributes of a pipeline that hold a guider, or None
GUIDERS = ("guider", "ocr_guider")


@contextmanager
def guided_call(pipe: Any, arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Arguments as the pipeline's call takes them; inside, `guidance_scale` is its guiders' where it is no argument of the call.

    Without guider and without that argument, guidance is distilled into the network, and the scale is dropped.
    """
    given = dict(arguments)
    if not hasattr(pipe, GUIDERS[0]) or "guidance_scale" in named_arguments(pipe):
        yield given
        return
    scale = given.pop("guidance_scale", None)
    guiders = [guider for name in GUIDERS if (guider := getattr(pipe, name, None)) is not None]
    before = [guider.guidance_scale for guider in guiders]
    for guider in guiders if scale is not None else ():
        guider.guidance_scale = float(scale)
    try:
        yield given
    finally:
        for guider, value in zip(guiders, before, strict=True):
            guider.guidance_scale = value


def scale_of(guider: Any) -> float | None:
    """Weight of classifier-free guidance of a guider, 1 where it is off; None where it says none."""
    scale = getattr(guider, "guidance_scale", None)
    if not isinstance(scale, int | float):
        return None
    if not getattr(guider, "_enabled", True):
        return 1.0
    return scale + (1.0 if getattr(guider, "use_original_formulation", False) else 0.0)
