"""Decision: what one guard found in one image and what it did about it, as plain data.

Guards write decisions (`Guard.verdict`), `protect` acts on them, a service may log them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

#: what can have happened to one image; "blocked" is set by policies (protect.py), never by a guard alone
ACTIONS = ("none", "redirected", "edited", "escalated", "blocked")


def score_text(score: float, threshold: float | None) -> str:
    """A score beside the threshold that it was held against: "21.19 > 3.01"; alone where there is none."""
    return f"{score:.2f}" if threshold is None else f"{score:.2f} {'>' if score > threshold else '≤'} {threshold:.2f}"


def logged_only(decision: Decision) -> Decision:
    """The decision of a guard that scored an image and left it as it was."""
    return replace(
        decision, action="none", unresolved=False, unverified=False, steps_redirected=0, token_strengths=None,
        message=f"Logged only. {decision.message}".strip(),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class Decision:
    """The record of one guard on one image.

    Attributes:
        guard: method name of the guard, as in `guard_config.json`.
        concept: the concept guarded against.
        image: 0-based position of the image in the pipeline's batch.
        fired: whether the guard acted on this image at least once.
        action: one of `ACTIONS`.
        prompt_score: highest score of the prompt alone, None if the guard does not read prompts.
        image_score: highest score of the denoised estimate, None if the guard does not read images.
        thresholds: name -> threshold the scores were held against.
        first_fired_step: 0-based index of the first step acted on, None if none.
        unresolved: whether the concept still seemed to be there at the end: do not show this image.
        unverified: whether this run could not tell: its last verdict is known to be weak, so that `unresolved` false says little.
        steps_redirected: number of denoiser calls that ran with edited conditioning or latents.
        token_strengths: (L,) strength per prompt token (of the strongest redirection), or None.
        tokens: the L tokens, where the caller knows them.
        prompt_scores: one entry per check of the prompt, in order.
        image_scores: one entry per check of the denoised estimate, in order.
        attempts: runs it took to get this image; more than 1 only under a policy that generates again (protect.py).
        message: one sentence for a person.
        name: the guard's own name (`guard.name`), which separates two guards of one method; "" for none.
        concepts: names of the concepts that it acted on, of a guard of many; `concept` is then the one with the highest score
            above its threshold.
        category: what a policy files the concept under (`saferedir.Policy`); "" for none.
        grade: the policy's name for how high the higher score is; "" for none.
        allowed: whether the prompt is on the policy's list of allowed ones, so that its prompt score decided nothing.

    Example:
        >>> from saferedir import Decision
        >>> decision = Decision(
        ...     guard="saferedir", concept="star", image=0, fired=True, action="redirected",
        ...     prompt_score=22.1, thresholds={"prompt": 3},
        ... )
        >>> decision
        Decision('saferedir' for 'star', image 0: redirected, prompt 22.10 > 3.00)
        >>> Decision.from_dict(decision.to_dict()) == decision
        True
    """

    guard: str
    concept: str
    image: int
    fired: bool = False
    action: str = "none"
    prompt_score: float | None = None
    image_score: float | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    first_fired_step: int | None = None
    unresolved: bool = False
    unverified: bool = False
    steps_redirected: int = 0
    token_strengths: tuple[float, ...] | None = None
    tokens: tuple[str, ...] | None = None
    prompt_scores: tuple[float, ...] = ()
    image_scores: tuple[float, ...] = ()
    attempts: int = 1
    message: str = ""
    name: str = ""
    concepts: tuple[str, ...] = ()
    category: str = ""
    grade: str = ""
    allowed: bool = False

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"Decision.action is {self.action!r}; expected one of {', '.join(ACTIONS)}.")
        for name in ("token_strengths", "tokens", "prompt_scores", "image_scores", "concepts"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))

    @property
    def outcome(self) -> str:
        """One word for a table: blocked, unresolved, untouched (no action), or the action."""
        if self.action == "blocked":
            return "blocked"
        if self.unresolved:
            return "unresolved"
        return "untouched" if self.action == "none" else self.action

    def under(self, category: str, grade_of: Callable[[float | None], str]) -> Decision:
        """This decision under a policy: with a category, and the grade of the higher of its scores.

        An allowed prompt's own score has no grade: that of the image has.
        """
        given = (None if self.allowed else self.prompt_score, self.image_score)
        scores = [score for score in given if score is not None]
        return replace(self, category=category, grade=grade_of(max(scores, default=None)))

    def scores(self) -> str:
        """Each score beside the threshold that it was held against: "prompt 21.19 > 3.01, image -8.36 ≤ 10.61"; "" for none."""
        parts = []
        for kind, score in (("prompt", self.prompt_score), ("image", self.image_score)):
            if score is not None:
                parts.append(f"{kind} {score_text(score, self.thresholds.get(kind))}")
        return ", ".join(parts)

    def __repr__(self) -> str:
        scores = f", {self.scores()}" if self.scores() else ""
        return (
            f"Decision({(self.name or self.guard)!r} for {self.concept!r}, image {self.image}: {self.outcome}{scores})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: tuples become lists, nothing else changes."""
        record: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, tuple):
                value = list(value)
            record[entry.name] = dict(value) if isinstance(value, dict) else value
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Decision:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a key is unknown, so that an old reader never drops a fact silently.
        """
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(record) - known)
        if unknown:
            raise ValueError(f"Decision has no field {', '.join(unknown)}; known fields: {', '.join(sorted(known))}.")
        return cls(**record)
