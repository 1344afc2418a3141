"""SafeRedir (arXiv:2601.08623): the reference redirector and the generalised one of this project.

`reference.py` runs published checkpoints, `network.py` holds the network that our trainer trains.
"""

from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.guard import SafeRedir
from saferedir.guards.saferedir.network import Redirector, RedirectorConfig
from saferedir.guards.saferedir.reference import ReferenceRedirector, load_reference_redirector

__all__ = [
    "Redirector",
    "RedirectorConfig",
    "ReferenceRedirector",
    "SafeRedir",
    "SafeRedirConfig",
    "load_reference_redirector",
]
