"""One concept of a redirector of many, as the redirector of one that losses and calibration know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from saferedir.guards.saferedir.network import Redirection, Redirector


class OneConcept(nn.Module):
    """Asks a `Redirector` with row heads for one of its concepts; the weights are the redirector's own."""

    def __init__(self, network: Redirector, concept: str) -> None:
        super().__init__()
        self.network = network
        self.index = network.config.concepts.index(concept)
        self.config = replace(network.config, concepts=(concept,))

    def _mine(self, logits: Tensor) -> Tensor:
        return logits[:, self.index : self.index + 1]

    def prompt_logits(self, *given: Any) -> Tensor:
        """(B, 1), as of `Redirector.prompt_logits`."""
        return self._mine(self.network.prompt_logits(*given))

    def image_logits(self, latent: Tensor, timestep: Tensor | float) -> Tensor:
        """(B, 1), as of `Redirector.image_logits`."""
        return self._mine(self.network.image_logits(latent, timestep))

    def joint_logits(self, *given: Any) -> Tensor:
        """(B, 1), as of `Redirector.joint_logits`."""
        return self._mine(self.network.joint_logits(*given))

    def image_and_joint_logits(self, *given: Any) -> tuple[Tensor, Tensor]:
        """(B, 1) each, as of `Redirector.image_and_joint_logits`."""
        image, joint = self.network.image_and_joint_logits(*given)
        return self._mine(image), self._mine(joint)

    def redirection(
        self, prompt_embeds: Tensor, prompt_mask: Tensor | None = None, pooled: Tensor | None = None
    ) -> Redirection:
        """As of `Redirector.redirection`, K = 1."""
        chosen = torch.full((len(prompt_embeds), 1), self.index, device=prompt_embeds.device)
        return self.network.redirection(prompt_embeds, prompt_mask, pooled, chosen=chosen)
