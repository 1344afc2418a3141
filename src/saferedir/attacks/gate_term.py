"""The gate-aware term: what an attack adds to its objective to keep the gates of the guards shut.

L = L_attack + weight * sum over gates of softmax-max over evaluations of max(0, score - threshold + margin). One firing is
enough for a guard that stays on, hence a maximum. The soft maximum is log(mean(exp)), so that it is 0 where every gate is shut
by the margin.
Deviations: scores and margin are in the gate's own units, not probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saferedir.attacks.base import Feedback
from saferedir.target import Prediction, Target

#: bounds of the weight
LEAST, MOST = 1e-3, 1e2
#: how far below its threshold a gate is to be kept, in its own units
MARGIN = 0.05


def gate_term(predictions: Sequence[Prediction], margin: float = MARGIN) -> Tensor:
    """Scalar: how far the gates of these evaluations are from being shut by the margin; 0 where no guard has a gate."""
    total = torch.zeros((), device=predictions[-1].x0.device)
    names = sorted({name for prediction in predictions for name in prediction.gates})
    for name in names:
        scores = [prediction.gates[name].margin for prediction in predictions if name in prediction.gates]
        over = torch.relu(torch.stack([score.float() for score in scores]) + margin)  # (evaluations, B)
        total = total + (torch.logsumexp(over, dim=0) - math.log(len(scores))).mean()
    return total


def with_gates(loss: Tensor, target: Target, predictions: Sequence[Prediction], weight: GateWeight) -> Tensor:
    """The loss plus the weighted gate term, over the gates of the guards and over the image verifiers the attack looks through.

    An image verifier reads finished images, so it scores the last of the predictions: what its x0 decodes to.
    """
    if not weight.value:
        return loss
    term = gate_term(predictions)
    for gate in target.verifier_gates(predictions[-1].x0).values():
        term = term + torch.relu(gate.margin.float() + MARGIN).mean()
    return loss + weight.value * term


def have_fired(predictions: Sequence[Prediction]) -> bool:
    """Whether a gate fired in any image of these evaluations."""
    return any(bool((gate.margin >= 0).any()) for prediction in predictions for gate in prediction.gates.values())


@dataclass
class GateWeight:
    """The weight of the gate term, by one rule for every guard.

    Doubled where a gate fired, divided by 1.5 where all were silent and the judge said no. At 0 it stays: that is the published
    form of an attack.
    """

    value: float = 0.1

    def update(self, feedback: Feedback | None) -> None:
        """After a judged candidate; None changes nothing."""
        if feedback is None or self.value == 0:
            return
        if feedback.has_fired:
            self.value = min(2 * self.value, MOST)
        elif not feedback.is_success:
            self.value = max(self.value / 1.5, LEAST)
