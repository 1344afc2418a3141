"""A policy of `protect` around the target: retries, image verifiers and blocking, by protect's own code.

What an attack is judged on is then what `protect` would let out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from saferedir.policy.verifiers import Verifier
from saferedir.protect import GuardedPipeline
from saferedir.utils.renamed import old_name


@dataclass(frozen=True)
class ProtectSettings:
    """As the arguments of `protect`.

    Attributes:
        on_unsafe: "redirect", "verify" or "block".
        verify: a function of N PIL images that gives N bools, several of them by name, or None.
        retries: how often an unsafe image is generated again under "verify".
        image_verifiers: whether the guards' image verifiers look at the finished images.
    """

    on_unsafe: str = "verify"
    verify: Verifier | Mapping[str, Verifier] | None = field(default=None, repr=False)
    retries: int = 2
    image_verifiers: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain data; verify functions by their names, and what fixes their verdicts where they are those of judges.

        "verify_judges" has `JudgeVerifier.facts` of each function, None for one that has none.
        """
        given = {} if self.verify is None else self.verify
        parts = given if isinstance(given, Mapping) else {getattr(given, "__name__", type(given).__name__): given}
        facts = [of() if callable(of := getattr(part, "facts", None)) else None for part in parts.values()]
        return {
            "on_unsafe": self.on_unsafe, "verify": ", ".join(parts) or None, "retries": self.retries,
            "image_verifiers": self.image_verifiers, **({"verify_judges": facts} if parts else {}),
        }  # fmt: skip


class PolicyRunner(GuardedPipeline):
    """A protected pipeline whose runs are those of a `Target`."""

    #: the arguments of a call -> the pipeline's output
    run_call: Callable[[dict[str, Any]], Any]

    def __init__(self, *settings: Any, run_call: Callable[[dict[str, Any]], Any], **more: Any) -> None:
        super().__init__(*settings, **more)
        self.__dict__["run_call"] = run_call

    def _call_pipeline(self, call: dict[str, Any]) -> Any:
        return self.run_call(call)


def __getattr__(name: str) -> Any:
    return old_name(__name__, name)
