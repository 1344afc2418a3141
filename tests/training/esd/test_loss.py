"""ESD's loss: the formula a second time, its optimum, and that it means the same for every prediction type."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saferedir.pipelines.schedules import from_x0, to_epsilon, to_x0
from saferedir.training.esd.loss import erased_target, esd_loss


def rand(seed: int) -> Tensor:
    return torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 3.0])
def test_at_the_optimum_there_is_no_loss_and_no_gradient(eta: float) -> None:
    reference, concept = rand(1), rand(2)
    student = ((1 + eta) * reference - eta * concept).requires_grad_()
    esd_loss(student, reference, concept, eta).backward()
    assert student.grad is not None and student.grad.abs().max() < 1e-7
    away = (student.detach() + 1).requires_grad_()
    loss = esd_loss(away, reference, concept, eta)
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-5) and away.grad is not None
    torch.testing.assert_close(away.grad, torch.full_like(away, 2 / away.numel()))


def test_eta_of_nothing_asks_for_the_reference() -> None:
    reference, concept = rand(1), rand(2)
    assert torch.equal(erased_target(reference, concept, 0.0), reference)
    assert esd_loss(reference, reference, reference, 7.0) == 0  # where the concept is the reference nothing is asked


@pytest.mark.parametrize("kind", ["v_prediction", "sample", "flow"])
def test_the_target_is_that_of_epsilon_in_any_prediction_type(kind: str) -> None:
    """Turn outputs into epsilon, combine there, turn back: the weights sum to one, so nothing changes."""
    x_t, eta = rand(0), 1.7
    alpha, sigma = (torch.tensor(0.6), torch.tensor(0.8)) if kind != "flow" else (torch.tensor(0.3), torch.tensor(0.7))
    outputs = rand(1), rand(2)
    noises = [to_epsilon(to_x0(kind, output, x_t, alpha, sigma), x_t, alpha, sigma) for output in outputs]
    noise = erased_target(noises[0], noises[1], eta)
    through = from_x0(kind, (x_t - sigma * noise) / alpha, x_t, alpha, sigma)
    torch.testing.assert_close(erased_target(*outputs, eta), through, atol=1e-4, rtol=1e-4)
