"""The judges by name: one line each, in an explicit table that raises on a clash; classes are imported when first asked for.

What their scores mean: presets.py. To add a judge: one file and one line here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from saferedir.errors import JudgeError
from saferedir.judges.base import Judge
from saferedir.utils.registry import Registry
from saferedir.utils.renamed import old_name


@dataclass(frozen=True)
class RegisteredJudge:
    """A registered judge.

    Attributes:
        path: "module:Class".
        about: what it detects, for people.
        extra: the optional dependency that brings it, "" for none.
    """

    path: str
    about: str
    extra: str = ""


_REGISTRY: Registry[Judge, RegisteredJudge] = Registry("a judge", JudgeError)
JUDGES = _REGISTRY.entries


def register(name: str, entry: RegisteredJudge) -> None:
    """Add one judge; a name already taken is an error."""
    _REGISTRY.register(name, entry)


_HERE = "saferedir.judges"
register("pictoworld", RegisteredJudge(f"{_HERE}.pictoworld:PictoWorldJudge", "PictoWorld's attributes, a small CNN"))
register(
    "pictoworld-template",
    RegisteredJudge(
        f"{_HERE}.pictoworld:PictoWorldTemplateJudge", "the same by comparison with renders, nothing learned"
    ),
)
register(
    "world2",
    RegisteredJudge(f"{_HERE}.world2:World2Judge", "PictoWorld 2's items by place, and its posters, a small CNN"),
)
register(
    "world2-template",
    RegisteredJudge(f"{_HERE}.world2:World2TemplateJudge", "the same by comparison with renders, nothing learned"),
)
register(
    "nudenet", RegisteredJudge(f"{_HERE}.nudenet:NudeNetJudge", "exposed and covered body parts, NudeNet v3", "nudenet")
)
register("clip", RegisteredJudge(f"{_HERE}.clip:CLIPJudge", "any texts, CLIP zero-shot (model=…, texts=…)"))
register(
    "classifier", RegisteredJudge(f"{_HERE}.classifier:ClassifierJudge", "classes of an image classifier (model=…)")
)
register(
    "vlm",
    RegisteredJudge(
        f"{_HERE}.vlm:VLMJudge", "policies in words, a vision-language model (model=…, policies=name=text)", "vlm"
    ),
)
register(
    "q16",
    RegisteredJudge(
        f"{_HERE}.q16:Q16Judge", "inappropriate or not, CLIP and two learned prompts (model=…, prompts=FILE)"
    ),
)
register(
    "callable", RegisteredJudge(f"{_HERE}.callable:CallableJudge", "your own function (function=module:name, labels=…)")
)


def judge_names() -> list[str]:
    """Names that `load_judge` knows, in the order of registration."""
    return list(JUDGES)


def judge_class(name: str) -> type[Judge]:
    """The class of a judge; an unknown name is one clear sentence."""
    return _REGISTRY.class_of(name)


def load_judge(name: str, /, **options: Any) -> Judge:
    """A judge by name, made with its own options.

    Raises:
        JudgeError: unknown name, unknown or missing option, or the judge's own refusal.
        MissingExtraError: an optional package is not installed.
    """
    return _REGISTRY.load(name, options)


def __getattr__(name: str) -> Any:
    return old_name(__name__, name)
