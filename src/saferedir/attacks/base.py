"""Attack: proposes what to send. The runner (run.py) or the bench generates and judges; an attack never decides its own success.

One attack, one file; their names: registry.py.
"""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor

from saferedir.attacks.catalogue import ROWS_BY_NAME
from saferedir.errors import AttackError
from saferedir.prompts.sets import ConceptPrompts, PromptItem, PromptSet
from saferedir.target import ImagePrompt, Inpainting, SoftPrompt, Target
from saferedir.utils.checks import Checked
from saferedir.utils.names import bad_options_message, unknown_name_message

#: which settings an attack begins with
PRESETS = ("quick", "paper")


@dataclass(frozen=True)
class AttackConfig(Checked):
    """Settings of an attack: its defaults are the preset "quick", for a small world on a CPU.

    Attributes of a subclass have names of the paper where it has some.
    """

    #: what the preset "paper" changes, to the published cost
    paper: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """The settings of a preset, with some of them changed.

        Raises:
            AttackError: no such preset, no such setting, or a value out of range.
        """
        if name not in PRESETS:
            raise AttackError(unknown_name_message("preset", name, PRESETS))
        if why := bad_options_message("attack", cls.__name__.removesuffix("Config"), cls, changes):
            raise AttackError(why)
        return cls(**{**(cls.paper if name == "paper" else {}), **changes})

    def require(self, holds: bool, name: str, expected: str) -> None:
        """Raise an AttackError naming field, value and expectation unless `holds`."""
        if not holds:
            raise AttackError(f"{type(self).__name__}.{name} is {getattr(self, name)!r}; expected {expected}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, eq=False)
class Candidate:
    """What an attack would send, in tensors, numbers and texts, so that it can be saved. Shapes: latents, x0 (1, C, h, w).

    Attributes:
        prompt: the text.
        soft: token embeddings to read in its place, of batch 1; empty for the text's own.
        latents: latents before evaluation `start`, in the sampler's frame; None for the run's own noise.
        x0: a clean image's latents, on which the run's own noise is put at `start`; None for none.
        start: evaluation to begin with.
        noise_level: sigma / alpha there, by which a replay on another schedule begins; None where it was not noted.
        amplitude: of the frame of `latents` there, see `Moment.amplitude`; None where it was not noted.
        inpainting: an image of which a region alone is generated anew; None for none.
        image_prompt: an image for the IP-Adapter, with the adapter's scale; None for the call's own.
        arguments: further arguments of the call, numbers or texts.
        seed: noise seed that the attacker chose; None for the evaluation's.
        loss: the attack's own objective, the smaller the better; nan where it has none.
        is_checkpoint: whether it should be generated and judged now.
        label: what it is, for the record, such as "typos 0.1"; never a text of a prompt.
    """

    prompt: str = field(repr=False)
    soft: tuple[SoftPrompt, ...] = field(default=(), repr=False)
    latents: Tensor | None = field(default=None, repr=False)
    x0: Tensor | None = field(default=None, repr=False)
    start: int = 0
    noise_level: float | None = None
    amplitude: float | None = None
    inpainting: Inpainting | None = field(default=None, repr=False)
    image_prompt: ImagePrompt | None = field(default=None, repr=False)
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    seed: int | None = None
    loss: float = float("nan")
    is_checkpoint: bool = False
    label: str = ""


@dataclass(frozen=True)
class Feedback:
    """What a judged candidate came to, sent back to the attack: whether it succeeded, and whether a gate of a guard fired."""

    is_success: bool
    has_fired: bool


Proposals = Generator[Candidate, Feedback | None, None]
ConfigT = TypeVar("ConfigT", bound=AttackConfig)


class Attack(ABC, Generic[ConfigT]):
    """Base class of every attack: override `propose`, `prompts`, or both.

    An attack with a row in the catalogue takes knowledge, channel and rung from it; others set them in their class.

    Class attributes:
        name: in the registry and in records.
        knowledge: what the attacker knows (T1 nothing but returned images, T2 any argument of the API, T3 white box, T3g grey
            box).
        channel: what is sent ("text", "embeddings", "latents", "image").
        rung: of the ladder ("none", "static", "transfer", "adaptive", "soft", "latent", "image").
        keeps_best: whether losses of different candidates can be compared, so that the best so far is judged; else the latest.
        stops_on_success: whether there is nothing left to learn after a success.
        is_adaptive: whether it has the guards before it while it searches.
        reports_live: whether each candidate is tried on the bare model, too, to tell apart what a rewriting alone has lost.

    Attributes:
        config: the settings.
    """

    name: ClassVar[str] = ""
    knowledge: ClassVar[str] = "T1"
    channel: ClassVar[str] = "text"
    rung: ClassVar[str] = "static"
    keeps_best: ClassVar[bool] = True
    stops_on_success: ClassVar[bool] = True
    is_adaptive: ClassVar[bool] = False
    reports_live: ClassVar[bool] = False
    config_class: ClassVar[type[AttackConfig]] = AttackConfig

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if row := ROWS_BY_NAME.get(cls.__dict__.get("name", "")):
            cls.knowledge, cls.channel, cls.rung = row.knowledge, row.channel, row.rung

    def __init__(self, config: ConfigT | None = None) -> None:
        self.config: ConfigT = self.config_class() if config is None else config  # type: ignore[assignment]

    def prompts(self, concept: ConceptPrompts) -> Mapping[str, PromptSet]:
        """Prompts to generate, by phrasing, without a model at hand; each set is a cell of the bench.

        Empty where the attack has nothing to offer for this concept, or needs a model.
        """
        return {}

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """Candidates, one for each step of the search, each with its loss.

        Budgets are none of its business: `BudgetSpent` passes through it, so that a larger budget extends a smaller run. A
        candidate with `is_checkpoint` is answered by a `Feedback`, others by None.

        Args:
            target: the model as defended; `target.undefended()` is the bare one.
            item: the prompt.
            generator: the source of all randomness of the attack.
        """
        raise AttackError(f"attack {self.name!r} has nothing to search for; put it into `attacks` of a bench.")
        yield  # a generator


def searches(attack: type[Attack[Any]]) -> bool:
    """Whether an attack proposes candidates to a runner."""
    return attack.propose is not Attack.propose


def is_static(attack: type[Attack[Any]]) -> bool:
    """Whether an attack has prompts without a model, so that it can be a cell of the bench."""
    return attack.prompts is not Attack.prompts


def repeated(soft: Sequence[SoftPrompt], count: int) -> list[SoftPrompt]:
    """Soft prompts of batch 1 for a batch of `count`."""
    return [
        SoftPrompt(entry.ids.expand(count, -1), entry.embeds.expand(count, -1, -1), entry.text_encoder)
        for entry in soft
    ]
