"""The negation set and its engine: reference latents, kernel weights over them, and one weighted sum.

Shared by `guards/safe_denoiser.py` and `guards/spell.py`, whose base class is in `base.py`, with `config.py` and `state.py`.
`bank.py` holds the set and its file, `reference_rows.py` its rows, `engine.py` the two matrix products a step, `kernels.py` the
logits, `calibration.py` widths and thresholds, `build.py` makes a set, `index.py` shortens a huge one.
"""

from saferedir.guards.negation.bank import NegationSet
from saferedir.guards.negation.engine import Attention, attend, attend_all, push_out
from saferedir.guards.negation.kernels import Query, gaussian_x0, gaussian_xt, laplace_x0

__all__ = [
    "Attention",
    "NegationSet",
    "Query",
    "attend",
    "attend_all",
    "gaussian_x0",
    "gaussian_xt",
    "laplace_x0",
    "push_out",
]
