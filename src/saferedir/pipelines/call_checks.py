"""What a pipeline's call may be given: values that cannot run, found before anything is generated."""

from __future__ import annotations

from typing import Any

from saferedir.utils.calls import is_prompt_argument
from saferedir.utils.checks import is_int, is_number

#: arguments of the call that count something -> the least of them
_COUNTS = {"num_inference_steps": 1, "height": 8, "width": 8, "num_frames": 1}
#: arguments of the call that give the schedule itself
_LISTS = ("timesteps", "sigmas")


def expected_value(name: str, value: Any, default: Any) -> str | None:
    """What was expected in place of a value that cannot run: of another kind than the argument's default, no step, no size.

    Args:
        name: of the argument.
        value: what it is set to.
        default: in the signature of the pipeline's call.

    Returns:
        Words such as "a whole number >= 8", None for a value that can run.
    """
    expected = None
    if name in _COUNTS or is_int(default):
        least = _COUNTS.get(name, 0)
        if not is_int(value) or value < least:
            expected = f"a whole number >= {least}"
    elif isinstance(default, bool):
        expected = None if isinstance(value, bool) else "true or false"
    elif isinstance(default, float) and not is_number(value):
        expected = "a number"
    elif is_prompt_argument(name):
        texts = value if isinstance(value, list) else [value]
        expected = None if len(texts) == 1 and isinstance(texts[0], str) else "one text, which serves every prompt"
    elif name in _LISTS and not (isinstance(value, list) and value and all(map(is_number, value))):
        expected = "a list of numbers"
    if name == "guidance_scale" and is_number(value) and value < 0:
        expected = "a number >= 0"
    return expected
