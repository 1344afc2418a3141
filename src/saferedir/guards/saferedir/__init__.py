"""SafeRedir (arXiv:2601.08623): the reference redirector and the generalised one of this project.

`reference.py` runs published checkpoints, `network.py` holds the network that our trainer trains.
"""

from .config import SafeRedirConfig
from .guard import SafeRedir
from .network import Redirector, RedirectorConfig
from .reference import ReferenceRedirector, load_reference_redirector

__all__ = [
    "Redirector",
    "RedirectorConfig",
    "ReferenceRedirector",
    "SafeRedir",
    "SafeRedirConfig",
    "load_reference_redirector",
]
