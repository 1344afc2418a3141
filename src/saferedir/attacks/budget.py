"""Budget: what an attack may spend on one prompt."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from saferedir.errors import AttackError
from saferedir.utils.checks import is_int


@dataclass(frozen=True)
class Budget:
    """Caps of one attack on one prompt; None for no cap.

    Attributes:
        nfe: rows through the denoiser while searching.
        bwd: those of them that a gradient can come back through.
        te: rows through text encoders while searching.
        gen: images that the attack itself generates to the end while searching.
        evaluations: candidates that are generated and judged, the untouched prompt apart; 0 leaves the prompt as it is.
    """

    nfe: int | None = None
    bwd: int | None = None
    te: int | None = None
    gen: int | None = None
    evaluations: int | None = 51

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not (is_int(value) and value >= 0):
                raise AttackError(f"Budget.{name} is {value!r}; expected a whole number >= 0, or None for no cap.")

    @property
    def caps(self) -> dict[str, int]:
        """As a `Ledger` takes them."""
        return {name: value for name in ("nfe", "bwd", "te", "gen") if (value := getattr(self, name)) is not None}
