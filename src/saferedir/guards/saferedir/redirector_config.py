"""The sizes and switches of a `Redirector`, checked once, in JSON form and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class RedirectorConfig:
    """Read prompt_dim, latent_channels and pooled_dim from the pipeline; the rest has defaults.

    The generalised SafeRedir network (arXiv:2601.08623); under 0.9 M parameters for prompt_dim 96.
    """

    prompt_dim: int  # D, width of the prompt embeddings
    latent_channels: int = 4  # C
    pooled_dim: int = 0  # P, 0 for pipelines without pooled embeddings
    concepts: tuple[str, ...] = ("concept",)  # K names, in the order of the heads
    latent_widths: tuple[int, ...] = (32, 64, 96)
    latent_strides: tuple[int, ...] = (1, 2, 2)
    hidden: int = 160  # of every score's MLP and of the latent feature
    width: int = 128  # of attention over tokens
    heads: int = 4
    rank: int = 128  # bottleneck of each concept's direction
    t_dim: int = 64
    alpha_max: float = 1.5  # reach: 2 sin(theta/2) = 1.5, theta = 97 degrees
    max_shift: float = 1.5  # rho: the combined shift of a token stays within rho * |e_i|
    token_specific: bool = True  # False: one direction for all tokens, as in the reference
    exempt_bos: bool = True  # the first real token never moves; False for encoders without BOS (T5)
    latent_aware_delta: bool = False  # ablation: directions also see latent and time
    row_heads: bool = False  # each concept a row of one matrix (rows.py), for many concepts; False: a head each
    has_joint: bool = True  # whether there is a joint verdict, which no guard reads

    def __post_init__(self) -> None:
        for name in ("prompt_dim", "latent_channels", "hidden", "width", "heads", "rank", "t_dim"):
            _check_int(name, getattr(self, name), least=1)
        _check_int("pooled_dim", self.pooled_dim, least=0)
        for name in ("concepts", "latent_widths", "latent_strides"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not value:
                raise ValueError(f"{name} is {value!r}, expected a non-empty sequence.")
            object.__setattr__(self, name, tuple(value))
        for name in ("latent_widths", "latent_strides"):
            for value in getattr(self, name):
                _check_int(f"each of {name}", value, least=1)
        if len(self.latent_strides) != len(self.latent_widths):
            raise ValueError(
                f"latent_strides has {len(self.latent_strides)} entries, expected one for each of the"
                f" {len(self.latent_widths)} latent_widths."
            )
        if not all(isinstance(name, str) and name for name in self.concepts):
            raise ValueError(f"concepts is {self.concepts!r}, expected names that are not empty.")
        if len(set(self.concepts)) != len(self.concepts):
            raise ValueError(f"concepts is {self.concepts!r}, expected each name once.")
        if self.width % (2 * self.heads):
            raise ValueError(f"width is {self.width}, expected a multiple of 2 * heads = {2 * self.heads}.")
        for name in ("alpha_max", "max_shift"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value!r}, expected a positive number.")
        for name in ("token_specific", "exempt_bos", "latent_aware_delta", "row_heads", "has_joint"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected true or false.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: tuples as lists."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RedirectorConfig":
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ValueError(
                f"RedirectorConfig does not know {', '.join(unknown)}; it knows {', '.join(sorted(known))}."
            )
        if "prompt_dim" not in data:
            raise ValueError("RedirectorConfig lacks prompt_dim, the width of the prompt embeddings.")
        return cls(**data)


def _check_int(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}.")
