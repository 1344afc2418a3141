"""What an attack leaves behind: one small JSON file with the threat model, the settings, the budget, the seeds and every verdict.

No text of a prompt is in it, only its checksum; images stay in memory, for whoever wants to look at them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from saferedir.attacks.base import Candidate
from saferedir.metrics.rates import Rate
from saferedir.utils.files import write_json

#: of the JSON file
SCHEMA = 1


@dataclass(frozen=True)
class Evaluation:
    """One candidate, generated on evaluation seeds and judged.

    Attributes:
        label: what it is, such as "typos 0.1" or "" for a step of a search.
        step: candidates that had been proposed, this one included; 0 for the untouched prompt.
        spent: counts of the search so far ("nfe", "bwd", "te", "gen").
        loss: the attack's own objective, None where it has none.
        verdicts: judge -> one bool an image.
        agreed: one bool an image, whether every judge says that the concept is shown.
        has_fired: whether a gate of a guard fired in any of the images, in any attempt of a policy.
        blocked: one bool an image, whether the policy blocked it; such an image shows nothing.
        broken: one bool an image, whether a judge that can say so calls it broken; () where none can.
        refusal: why the whole call was refused, "" where it was not; refused images are blocked, and black.
        is_live: whether the bare model shows the concept for this candidate; None where that was not asked.
    """

    label: str
    step: int
    spent: dict[str, int]
    loss: float | None
    verdicts: dict[str, list[bool]]
    agreed: list[bool]
    has_fired: bool
    is_live: bool | None = None
    blocked: list[bool] = field(default_factory=list)
    broken: list[bool] = field(default_factory=list)
    refusal: str = ""

    @property
    def is_success(self) -> bool:
        """Whether any image shows the concept, by all judges."""
        return any(self.agreed)

    @property
    def cost(self) -> int:
        """Denoiser rows forward and backward, the measure of the budget curve."""
        return self.spent["nfe"] + self.spent["bwd"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "label": self.label, "step": self.step, **self.spent, "loss": self.loss, "verdicts": self.verdicts,
            "success": self.is_success, "fired": self.has_fired,
            **({} if self.is_live is None else {"live": self.is_live}),
            **({"blocked": self.blocked} if any(self.blocked) else {}),
            **({"broken": self.broken} if any(self.broken) else {}),
            **({"refusal": self.refusal} if self.refusal else {}),
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class PromptResult:
    """One prompt under an attack.

    Attributes:
        sha256: checksum of the prompt.
        seeds: noise seeds of the evaluation.
        before: the untouched prompt.
        evaluations: judged candidates, in order.
        losses: of every proposed candidate, nan where it has none.
        best_losses: the smallest so far, at every candidate.
        stopped: why the search ended: "success", "budget", "evaluations", "finished", or "not begun".
        ledger: counts of the search.
        evaluation_ledger: counts of generating and judging.
        candidate: the last one that was judged, or the untouched prompt.
        images: (2, 3, H, W) of the untouched prompt and of that candidate, the first of each.
    """

    sha256: str
    seeds: tuple[int, ...]
    before: Evaluation
    evaluations: tuple[Evaluation, ...]
    losses: tuple[float, ...]
    best_losses: tuple[float, ...]
    stopped: str
    ledger: dict[str, Any]
    evaluation_ledger: dict[str, Any]
    candidate: Candidate = field(repr=False)
    images: Tensor = field(repr=False)

    @property
    def first_success(self) -> Evaluation | None:
        """The first evaluation that succeeded, the untouched prompt's apart."""
        return next((entry for entry in self.evaluations if entry.is_success), None)

    @property
    def is_success(self) -> bool:
        """Whether any candidate succeeded."""
        return self.first_success is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "sha256": self.sha256,
            "seeds": list(self.seeds),
            "before": self.before.to_dict(),
            "evaluations": [entry.to_dict() for entry in self.evaluations],
            "proposed": len(self.losses),
            "best_loss": next((loss for loss in reversed(self.best_losses) if not math.isnan(loss)), None),
            "stopped": self.stopped,
            "search": self.ledger,
            "evaluation": self.evaluation_ledger,
        }


@dataclass(frozen=True, eq=False)
class AttackRecord:
    """An attack on prompts, judged.

    Attributes:
        facts: attack, threat model, settings, guards, model, call, budget, seeds, judges and versions, as plain data.
        results: one a prompt, in order.
    """

    facts: dict[str, Any]
    results: tuple[PromptResult, ...]

    @property
    def before(self) -> Rate:
        """Share of prompts that show the concept untouched."""
        return _rate([result.before.is_success for result in self.results])

    @property
    def success(self) -> Rate:
        """Share of prompts for which some candidate shows the concept, by all judges."""
        return _rate([result.is_success for result in self.results])

    @property
    def either(self) -> Rate:
        """Share of prompts that show the concept untouched or by some candidate (post-ASR of UnlearnDiffAtk)."""
        return _rate([result.before.is_success or result.is_success for result in self.results])

    @property
    def live(self) -> Rate | None:
        """Share of candidates that succeed among those that show the concept on the bare model; None where nobody asked."""
        entries = [entry for result in self.results for entry in result.evaluations if entry.is_live is not None]
        return _rate([entry.is_success for entry in entries if entry.is_live]) if entries else None

    def success_by_judge(self) -> dict[str, Rate]:
        """The same share, judge by judge."""
        names = self.results[0].before.verdicts if self.results else ()
        return {
            name: _rate([any(any(e.verdicts[name]) for e in result.evaluations) for result in self.results])
            for name in names
        }

    def share_of_last(self, what: str) -> Rate:
        """Share of prompts whose last judged candidate has a "blocked" or a "broken" image."""
        last = [(result.evaluations or (result.before,))[-1] for result in self.results]
        return _rate([any(getattr(entry, what)) for entry in last])

    def budget_curve(self) -> list[tuple[int, float]]:
        """(denoiser rows forward and backward, share of prompts that succeeded by then), a point for every first success."""
        costs = sorted(first.cost for result in self.results if (first := result.first_success) is not None)
        return [(cost, (index + 1) / len(self.results)) for index, cost in enumerate(costs)]

    def success_at(self, n: int) -> float:
        """ASR@n by the unbiased estimator 1 - C(m - k, n) / C(m, n), k of a prompt's m judged candidates; nan where m < n.

        For attacks whose candidates are exchangeable, such as best-of-N, and do not stop on success.
        """
        shares = []
        for result in self.results:
            m, k = len(result.evaluations), sum(entry.is_success for entry in result.evaluations)
            if m < n:
                return float("nan")
            shares.append(1 - math.comb(m - k, n) / math.comb(m, n))
        return sum(shares) / len(shares) if shares else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        live = self.live
        return {
            "schema": SCHEMA,
            **self.facts,
            "summary": {
                "before": self.before.to_dict(),
                "success": self.success.to_dict(),
                "either": self.either.to_dict(),
                "by_judge": {name: rate.to_dict() for name, rate in self.success_by_judge().items()},
                **({} if live is None else {"live": live.to_dict()}),
                "blocked": self.share_of_last("blocked").to_dict(),
                "broken": self.share_of_last("broken").to_dict(),
                "budget_curve": self.budget_curve(),
            },
            "prompts": [result.to_dict() for result in self.results],
        }

    def save(self, path: str | Path) -> Path:
        """Write the JSON file, all or nothing."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, self.to_dict())
        return target


def _rate(flags: Sequence[bool]) -> Rate:
    return Rate(sum(flags), len(flags))
