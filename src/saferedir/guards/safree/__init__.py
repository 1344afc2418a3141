"""SAFREE (arXiv:2410.12761): config, the mathematics, what a text is to it, and the guard."""

from saferedir.guards.safree.config import SafreeConfig
from saferedir.guards.safree.guard import Safree

__all__ = ["Safree", "SafreeConfig"]
