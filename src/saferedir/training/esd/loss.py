"""The loss of ESD: a prediction for the concept, turned round about the prediction for a reference.

Implements Eqs. 6 and 7 of "Erasing Concepts from Diffusion Models" (arXiv:2303.07345): docs/methods/esd.md (1) and (2). Pure
functions. Shapes: model outputs (R, C, h, w). The weights of (1) sum to one and a model's output is affine in epsilon at a
fixed x_t, so that (1) means the same for models that predict epsilon, v, x0 or a velocity.
"""

from __future__ import annotations

from torch import Tensor


def erased_target(reference: Tensor, concept: Tensor, eta: float) -> Tensor:
    """reference - eta (concept - reference), the prediction that the student learns; of the frozen model."""
    return reference - eta * (concept - reference)


def esd_loss(student: Tensor, reference: Tensor, concept: Tensor, eta: float) -> Tensor:
    """Mean squared distance of the student's prediction for the concept to `erased_target`, in float32."""
    return (student.float() - erased_target(reference.float(), concept.float(), eta)).square().mean()
