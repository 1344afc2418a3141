"""Settings of every guard and trainer: a wrong type, a NaN or an empty text is one sentence, never a traceback or a yes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from saferedir.errors import GuardConfigError
from saferedir.guard import GuardConfig
from saferedir.guards.dual_latent import DualLatentConfig, DualLatentR2Config
from saferedir.guards.duo.config import DUOConfig
from saferedir.guards.negative_prompt import NegativePromptConfig
from saferedir.guards.safe_denoiser import SafeDenoiserConfig
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.safree import SafreeConfig
from saferedir.guards.sld import SLDConfig
from saferedir.guards.spell import SPELLConfig
from saferedir.training.duo.train_config import TrainConfig
from saferedir.training.saferedir.train_config import TrainConfig as RedirectorTraining

GUARDS: tuple[type[GuardConfig], ...] = (
    DUOConfig, DualLatentConfig, DualLatentR2Config, NegativePromptConfig, SafeDenoiserConfig, SafeRedirConfig, SafreeConfig,
    SLDConfig, SPELLConfig,
)  # fmt: skip
WRONG: list[tuple[type[Any], dict[str, Any]]] = [
    (SLDConfig, {"strength": "a"}), (SLDConfig, {"warmup_steps": 1.5}), (SLDConfig, {"momentum": True}),
    (SLDConfig, {"threshold": math.nan}), (SafreeConfig, {"margin": "a"}), (SafreeConfig, {"margin": math.nan}),
    (SafreeConfig, {"lra_factors": 3}), (SafreeConfig, {"lra_factors": ("a", 0.1)}), (SafreeConfig, {"negative": "no"}),
    (DualLatentConfig, {"w": "a"}), (DualLatentConfig, {"w": ()}), (DualLatentConfig, {"w": math.nan}),
    (DualLatentConfig, {"tau": "a"}), (DualLatentConfig, {"anchor": " ", "provider": "anchor"}),
    (DualLatentConfig, {"safe_phrase": " "}), (DualLatentConfig, {"amount": None}),
    (DualLatentR2Config, {"dual_fraction": "a"}), (DUOConfig, {"targets": ("",)}), (DUOConfig, {"rank": 2.0}),
    (DUOConfig, {"weight": math.inf}), (SafeRedirConfig, {"replace_steps": 1.5}), (SafeRedirConfig, {"use_image": 1}),
    (SafeRedirConfig, {"image_threshold": math.nan}), (TrainConfig, {"beta": "a"}), (TrainConfig, {"size": (0, 0)}),
    (TrainConfig, {"size": 64}), (TrainConfig, {"targets": ("",)}), (TrainConfig, {"t_max": 1.5}),
    (TrainConfig, {"learning_rate": math.nan}), (TrainConfig, {"shared_t": "yes"}), (RedirectorTraining, {"steps": "a"}),
    (RedirectorTraining, {"learning_rate": 0}), (RedirectorTraining, {"held_out": 1.5}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "wrong"), WRONG, ids=lambda value: str(getattr(value, "__name__", value)))
def test_a_wrong_setting_is_named_with_what_was_expected(kind: type[Any], wrong: dict[str, Any]) -> None:
    needed = {"concept": "star"} if issubclass(kind, GuardConfig) else {}
    with pytest.raises(GuardConfigError, match=rf"^{kind.__name__}\.{next(iter(wrong))} is .*; expected .+\.$"):
        kind(**needed, **wrong)


@pytest.mark.parametrize("kind", GUARDS)
@pytest.mark.parametrize("concept", ["", " ", 3])
def test_a_concept_is_a_name(kind: type[GuardConfig], concept: Any) -> None:
    with pytest.raises(GuardConfigError, match="expected a non-empty name"):
        kind(concept=concept)


@pytest.mark.parametrize("kind", GUARDS)
def test_every_number_text_and_flag_refuses_another_type(kind: type[GuardConfig]) -> None:
    """Whatever a field's default is, a complex number is none."""
    plain = kind(concept="star").to_dict()
    for name in sorted(set(plain) - {"concept", "backbone", "training", "measured"}):
        with pytest.raises(GuardConfigError, match=rf"\.{name} is 1j; expected"):
            kind(concept="star", **{name: 1j})


def test_bounds_are_said_as_they_hold() -> None:
    with pytest.raises(GuardConfigError, match="a finite number >= 0 and < 1"):
        SLDConfig(concept="star", momentum=1)
    assert SLDConfig(concept="star", momentum=0, warmup_steps=None).momentum == 0
