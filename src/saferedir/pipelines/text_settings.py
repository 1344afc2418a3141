"""TextSettings: how one call of a pipeline turns its prompts into embeddings, apart from what the prompts say.

LoRAs on the text encoders are another matter (`own_adapters`). The seam and the bench make one of a call; trainers
record the one they worked under; a guard that judges embeddings compares the two (`TextSettings.require`). Docs:
docs/security.md, "Settings of the text encoders".
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from saferedir.errors import GuardError
from saferedir.pipelines.families import Family, family_of

#: the argument that pads, or cuts, prompts to a length
LENGTH = "max_sequence_length"
#: arguments of `encode_prompt` that are no settings: which rows it makes, and where
_ROWS = {
    *("self", "device", "dtype", "batch_size"),
    *("num_images_per_prompt", "num_videos_per_prompt", "do_classifier_free_guidance"),
}
_TEXT = re.compile(r"prompt(_\d+)?")
_GIVEN = re.compile(r"negative.*|.*_(embeds|mask)(_(mask_)?(\d+|t5|llama3))?|(.*_)?(image|images)")
#: attributes of a pipeline with what it writes around a prompt (Qwen-Image, FLUX.2, Lumina 2, Krea 2), not those for rewriting it
_TEMPLATE = re.compile(r"(prompt_template|system_(message|prompt))(?!.*upsampling)\w*")
#: how such an attribute is named among the settings
_OF_PIPE = "pipe."
_LONGEST = 80  # characters of a value that is recorded as it is


@dataclass(frozen=True)
class TextSettings:
    """Settings under which one call's prompts are encoded.

    Attributes:
        values: the arguments that change what its text encoders hand over, by name, as plain data; without the length of
            prompts where it changes none of their embeddings.
        defaults: the same of a call that sets none of them, of the first pipeline class that knows them: a subclass with another
            default encodes prompts in another way.
        other_texts: names of further prompts (`prompt_2`) that say something else than `prompt`.

    Example:
        >>> from saferedir.guard import TextSettings
        >>> settings = TextSettings(values={"clip_skip": 1}, defaults={"clip_skip": None})
        >>> settings.require({"clip_skip": 1}, (), "my guard")
    """

    values: Mapping[str, Any]
    defaults: Mapping[str, Any]
    other_texts: tuple[str, ...] = ()

    def require(self, trained: Mapping[str, Any], lengths: Sequence[int], who: str) -> None:
        """GuardError unless prompts were trained on under these settings.

        Args:
            trained: values that the training gave; the others are the call's defaults.
            lengths: prompt lengths of the training; all between the shortest and the longest are covered. () for the one in
                `trained`.
            who: the guard, as the sentence names it.
        """
        for name, value in self.values.items():
            known = plain(trained.get(name, self.defaults[name]))
            if name == LENGTH and lengths:
                if isinstance(value, int) and min(lengths) <= value <= max(lengths):
                    continue
                known = f"{min(lengths)} to {max(lengths)}" if len(set(lengths)) > 1 else lengths[0]
            if value == known:
                continue
            remedy = f"leave {name} out" if self.defaults[name] == known else f"call with {name}={known!r}"
            if name.startswith(_OF_PIPE):
                raise GuardError(
                    f"this call encodes its prompts with {name}={value!r}, but {who} judges embeddings and was trained with "
                    f"{name}={known}; give {name} its value of that training back, or train a guard on this pipeline."
                )
            if name == LENGTH and len(set(lengths)) > 1:
                remedy = f"give a length from {known}"
            raise GuardError(
                f"this call encodes its prompts with {name}={value!r}, but {who} judges embeddings and was trained with "
                f"{name}={known}; {remedy}, or train a guard with call={{{name!r}: {_shown(value)}}}."
            )
        if self.other_texts:
            raise GuardError(
                f"this call's {self.other_texts[0]} says something else than its prompt, but {who} was trained on one text for "
                f"all text encoders; give the whole text as prompt and leave {self.other_texts[0]} out."
            )


def text_settings(pipe: Any, arguments: Mapping[str, Any]) -> TextSettings:
    """Text settings of a call of `pipe` with these arguments (or local variables of it); others have the call's defaults."""
    settings = default_settings(pipe, family_of(pipe))
    known = named_arguments(pipe, "__call__", is_first=True)
    prompt = _listed(arguments.get("prompt"))
    others = [name for name in _parameters(pipe) if _TEXT.fullmatch(name) and name != "prompt" and arguments.get(name)]
    written = {f"{_OF_PIPE}{name}": plain(value) for name, value in templates(pipe).items()}
    return TextSettings(
        values={name: _normal(name, arguments.get(name, value)) for name, value in settings.items()} | written,
        defaults={name: _normal(name, known[name].default) for name in settings} | written,
        other_texts=tuple(name for name in others if _listed(arguments[name]) != prompt),
    )


def default_settings(pipe: Any, family: Family) -> dict[str, Any]:
    """name -> default of every argument of the pipeline's call that its `encode_prompt` takes too and that changes embeddings.

    None of those that the pipeline sets by itself. An argument that is not in the tables is one of them.
    """
    call = named_arguments(pipe)
    return {
        name: call[name].default
        for name in _parameters(pipe)
        if name in call and name not in family.encoder_settings and not _TEXT.fullmatch(name)
        if name != LENGTH or family.length_matters
    }


def templates(pipe: Any) -> dict[str, Any]:
    """Attributes of the pipeline with what it writes around each prompt before it encodes it."""
    return {
        name: value
        for name, value in getattr(pipe, "__dict__", {}).items()
        if _TEMPLATE.fullmatch(name) and isinstance(value, str | int)
    }


def encoder_arguments(pipe: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
    """What a pipeline whose call has these variables gave `encode_prompt` beside texts and embeddings."""
    return {name: variables[name] for name in _parameters(pipe) if name in variables and not _TEXT.fullmatch(name)}


def named_arguments(pipe: Any, method: str = "__call__", *, is_first: bool = False) -> dict[str, inspect.Parameter]:
    """Arguments of a method by name; with *args or **kwargs it hands on those of its base class, which count too.

    A function that was put in the method's place on this very pipeline counts as that of a subclass. Where two classes name
    the same argument it is the subclass's; `is_first`: the base class's, of all bases.
    """
    parameters: dict[str, inspect.Parameter] = {}
    firsts: dict[str, inspect.Parameter] = {}
    is_open = True
    replaced = getattr(pipe, "__dict__", {}).get(method)
    signatures = [] if replaced is None else [_signature(replaced)]  # not remembered: it may hold the pipeline
    for named, has_more in (*signatures, *_class_signatures(type(pipe), method)):
        if is_open:
            parameters = {**named, **parameters}
            is_open = has_more
        firsts |= named
    return {name: firsts[name] for name in parameters} if is_first else parameters


def _class_signatures(kind: type[Any], method: str) -> list[tuple[dict[str, inspect.Parameter], bool]]:
    """`_signature` of a method in every class that has it, the subclass's first."""
    return [_class_signature(vars(owner)[method]) for owner in kind.__mro__ if method in vars(owner)]


def _signature(function: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Arguments of a function by name, and whether it takes others, too."""
    entries = inspect.signature(function).parameters.values()
    named = {entry.name: entry for entry in entries if entry.kind not in (entry.VAR_POSITIONAL, entry.VAR_KEYWORD)}
    return named, len(named) < len(entries)


#: of functions of classes, asked for at every run
_class_signature = lru_cache(maxsize=256)(_signature)


def plain(value: Any) -> Any:
    """A setting as plain data that can be compared; of a long one (an instruction to the encoder) a checksum."""
    text = json.dumps(value, sort_keys=True, default=repr)
    if len(text) <= _LONGEST:
        return json.loads(text)
    return f"{len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _parameters(pipe: Any) -> list[str]:
    """Names of what `encode_prompt` takes, without rows, embeddings and what belongs to the negative prompt."""
    return [name for name in named_arguments(pipe, "encode_prompt") if name not in _ROWS and not _GIVEN.fullmatch(name)]


def _normal(name: str, value: Any) -> Any:
    return None if name == "clip_skip" and value == 0 else plain(value)  # skipping no layer is the default


def _shown(value: Any) -> str:
    return "..." if "sha256" in str(value) else repr(value)


def _listed(texts: Any) -> list[Any]:
    return [texts] if isinstance(texts, str) or texts is None else list(texts)
