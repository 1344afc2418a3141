"""Arguments of a pipeline's call that are texts: one of them serves every prompt of a batch.

Used wherever a list of prompts meets arguments that a person gave for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PROMPT = re.compile(r"(?:negative_)?prompt(?:_\d+)?")


def is_prompt_argument(name: str) -> bool:
    """Whether an argument of a call is a text or a list of texts: prompt, negative_prompt, prompt_2, negative_prompt_3, …"""
    return _PROMPT.fullmatch(name) is not None


def for_each_prompt(call: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The arguments of a call with `count` prompts: a text given once, alone or in a list of one, serves each of them.

    diffusers takes a negative prompt as a text beside a text, and as a list beside a list, but not as a text beside a list.
    """

    def spread(name: str, value: Any) -> Any:
        if not is_prompt_argument(name):
            return value
        if isinstance(value, (list, tuple)) and len(value) == 1:
            value = value[0]
        return [value] * count if isinstance(value, str) else value

    return {name: spread(name, value) for name, value in call.items()}
