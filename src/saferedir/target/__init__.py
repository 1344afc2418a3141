"""The guarded model as a white-box attacker has it: a differentiable function of prompts, tokens, embeddings and latents.

`Target` is the way in; attacks import nothing else of this room. May import attach, encoding, families,
guard, protect, schedules, seam.
"""

from saferedir.target.ledger import Ledger
from saferedir.target.policy import Policy
from saferedir.target.prediction import Prediction
from saferedir.target.soft_prompt import SoftPrompt
from saferedir.target.target import Moment, Target
from saferedir.target.vocabulary import Vocabulary

__all__ = ["Ledger", "Moment", "Policy", "Prediction", "SoftPrompt", "Target", "Vocabulary"]
