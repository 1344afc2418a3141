"""DUO (arXiv:2407.21035): a LoRA that has unlearned a concept from image pairs, with its pair synthesis and training."""

from saferedir.guards.duo.config import DUOConfig
from saferedir.guards.duo.guard import DUO

__all__ = ["DUO", "DUOConfig"]
