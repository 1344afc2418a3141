"""The guarded model as a white-box attacker has it: a differentiable function of prompts, tokens, embeddings and latents.

`Target` is the way in; attacks import nothing else of this room. May import attach, encoding, families,
guard, protect, schedules, seam.
"""

from typing import Any

from saferedir.target.given_images import ImagePrompt, Inpainting
from saferedir.target.ledger import Ledger
from saferedir.target.policy import ProtectSettings
from saferedir.target.prediction import Prediction
from saferedir.target.soft_prompt import SoftPrompt
from saferedir.target.target import Moment, Target
from saferedir.target.vocabulary import Vocabulary
from saferedir.utils.renamed import old_name

__all__ = [
    "ImagePrompt",
    "Inpainting",
    "Ledger",
    "Moment",
    "Prediction",
    "ProtectSettings",
    "SoftPrompt",
    "Target",
    "Vocabulary",
]


def __getattr__(name: str) -> Any:
    return old_name(__name__, name)
