"""Guard: the base class of every method, its frozen config, and the points at which it may intervene.

A guard is pure, differentiable tensor functions over a `Step`; it never sees a pipeline (that is `attach`).
Imports torch, `checks`, `errors`, `decisions`, `encoding`, `solver`. Saving and loading live in `storage`; concrete methods in
`guards/`.

Rules of the seam, for guard authors:

* Return the very object you were given to say "untouched"; the pipeline's own tensor is then passed on as it
  is.
* Anything remembered between calls lives in the object `start` returns, with one row per image; nothing on
  `self`.
* A row must not depend on its neighbours: edit with ``torch.where(rows, new, old)``, never with a batch-wide
  `if`.
* No `detach`, `no_grad`, `.item()` in the graph: attacks differentiate through the guarded pipeline.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from saferedir.checks import Checked, is_text
from saferedir.decisions import Decision
from saferedir.encoding import Encoded
from saferedir.errors import GuardConfigError, GuardError
from saferedir.solver import Solver
from saferedir.text_towers import TextTower


class Embeds(NamedTuple):
    """What a guard puts in place of the conditioning of one denoiser call; None leaves that part as it is.

    prompt (B, L, D): the conditional rows. negative (B, L, D): the unconditional rows. pooled (B, P):
    conditional. negative_pooled (B, P), negative_mask (B, L): of the unconditional rows; ignored where the denoiser is given
    none.
    """

    prompt: Tensor | None = None
    negative: Tensor | None = None
    pooled: Tensor | None = None
    negative_pooled: Tensor | None = None
    negative_mask: Tensor | None = None


class Apart(NamedTuple):
    """Latents (B, C, h, w) of a guard's own, in the sampler's frame, and rows (B,) bool of the images that have some."""

    latents: Tensor
    rows: Tensor


class SkipFeatures(NamedTuple):
    """What a UNet hands round its middle to one layer of its up blocks, in this denoiser call.

    cond, uncond (None without guidance), and one of `extra` for each extra row of this guard: (B, C, h, w). stage: 0 in the
    widest layers (1280 hidden channels in Stable Diffusion), 1 at the next width (640), and so on.
    """

    cond: Tensor
    uncond: Tensor | None
    extra: tuple[Tensor, ...]
    stage: int


def _no_encoder(texts: Sequence[str]) -> Encoded:
    raise GuardError("this run has no text encoder at hand, so a guard that needs its texts encoded cannot start.")


@dataclass(frozen=True, kw_only=True)
class GuardConfig(Checked):
    """Configuration shared by every guard; a method adds its own fields and checks them in `validate`.

    Attributes:
        concept: what must not appear, in words.
        backbone: fingerprint of the pipeline the guard was made for (`families.backbone_fingerprint`), or
            None if
            the guard works with any.
        training: how it was made (data, steps, seed), free-form plain data.
        measured: what was measured, free-form plain data.
    """

    concept: str
    backbone: dict[str, Any] | None = None
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    measured: dict[str, Any] = dataclasses.field(default_factory=dict)

    #: fields that are paths of files; saved relative to the guard's folder, found from there
    file_fields: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):  # JSON has no tuples
            value = getattr(self, entry.name)
            if isinstance(value, list) and "tuple" in str(entry.type):
                object.__setattr__(self, entry.name, tuple(value))
        self.require(is_text(self.concept), "concept", "a non-empty name")
        self.validate()

    def validate(self) -> None:
        """Check the values of a method's own fields, with `require` and its sisters (`checks.py`). Called once, when the config
        is made.
        """

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; unknown and missing keys are errors that name them."""
        known = {entry.name: entry for entry in dataclasses.fields(cls) if entry.init}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise GuardConfigError(
                f"{cls.__name__} has no field {', '.join(map(repr, unknown))}; "
                f"known fields: {', '.join(sorted(known))}."
            )
        missing = [
            name
            for name, entry in known.items()
            if name not in values
            and entry.default is dataclasses.MISSING
            and entry.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise GuardConfigError(f"{cls.__name__} needs a value for {', '.join(map(repr, missing))}.")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Facts of one pipeline call, fixed from its first denoiser call on.

    Attributes:
        batch_size: B, images of this call (prompts x images per prompt).
        num_steps: sampling steps; num_evaluations: denoiser calls (more with Heun, KDPM2, PNDM).
        timesteps: training-scale time of each evaluation, 0..1000.
        family: name of the pipeline family; prediction_type: as `schedules.prediction_type` has it.
        guided: whether classifier-free guidance is on (where its halves come one after the other: whether it has been
            seen yet); guidance_scale: its weight, None where unknown.
        insist: one level an image; above 0 the last run's image was unsafe, so act from step 0 on, more strongly the higher.
        device, dtype: of the denoiser's latents.
        encode: texts -> their conditioning (N, ...) by the pipeline's own text encoders, as long as the run's prompts.
        towers: the text encoders themselves, in the order of `families`; filled only if a guard has `needs_text`.
        solver: the scheduler's update, for a latent of the guard's own; there only if a guard has `extra_latents`.
    """

    batch_size: int
    num_steps: int
    num_evaluations: int
    timesteps: tuple[float, ...]
    family: str
    prediction_type: str
    guided: bool
    guidance_scale: float | None
    device: torch.device
    dtype: torch.dtype
    insist: tuple[int, ...] = ()
    encode: Callable[[Sequence[str]], Encoded] = dataclasses.field(default=_no_encoder, repr=False, compare=False)
    towers: tuple[TextTower, ...] = dataclasses.field(default=(), repr=False, compare=False)
    solver: Solver | None = dataclasses.field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One moment of the sampling as a guard may know it. Shapes as in design section 4.

    Before the denoiser call (`on_prompt`, `on_step_start`) there is no prediction yet: `pred*` and `x0` are
    None and `x_t` is `model_input`, the latents as the denoiser gets them. Variance-exploding schedulers
    divide their latents by sqrt(1 + sigma^2) for the denoiser; `alpha` and `sigma` are then divided alike,
    so that ``x_t = alpha x0 + sigma eps`` holds at every point. After the call `x_t`, `alpha`, `sigma` are
    in the sampler's own frame. `pred`, `pred_cond`, `pred_uncond` have the latents' dtype; `x0*` are float32.

    Where extra rows had latents of their own, these are `extra_latents` in the sampler's frame, and `pred_extra_uncond` is
    the unconditional prediction for them (None without guidance).

    `prompts`, the images' texts (None where unknown: the caller gave embeddings), is filled only if a guard has
    `needs_text`. Texts are private: keep them out of logs and messages.
    """

    run: Run
    state: Any
    index: int
    evaluation: int
    num_steps: int
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    x_t: Tensor
    model_input: Tensor
    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None
    pooled: Tensor | None
    prompt_mask: Tensor
    guidance_scale: float | None
    pred_cond: Tensor | None = None
    pred_uncond: Tensor | None = None
    pred_extra: tuple[Tensor, ...] = ()
    pred_extra_uncond: Tensor | None = None
    extra_latents: Tensor | None = None
    pred: Tensor | None = None
    x0: Tensor | None = None
    x0_uncond: Tensor | None = None
    x0_previous: Tensor | None = None
    prompts: tuple[str | None, ...] = dataclasses.field(default=(), repr=False)


ConfigT = TypeVar("ConfigT", bound=GuardConfig)


class Guard(Generic[ConfigT]):
    """Base class of every guard. Override the points of intervention the method needs, and only those:
    the seam sees which ones are overridden and does no work for the others.
    """

    #: name in the registry and in `guard_config.json`
    method: ClassVar[str] = ""
    config_class: ClassVar[type[GuardConfig]] = GuardConfig
    #: whether it makes a guided prediction of its own; `attach` refuses two such guards on one pipeline
    replaces_guidance: ClassVar[bool] = False
    #: whether it takes the sampler's step anew, or goes on from merged latents, in `on_step_end`; some settings of a guard may,
    #: and others not; `attach` refuses two such guards on one pipeline
    replaces_step: bool = False
    #: whether it reads `step.prompts` and `run.towers`; some settings of a guard may, and others not
    needs_text: bool = False

    def __init__(self, config: ConfigT) -> None:
        self.config: ConfigT = config
        #: a disabled guard is not called at all: the output is bit-identical to the unguarded one
        self.enabled = True

    def load(self, denoiser: nn.Module) -> None:
        """Put this guard's adapters on the denoiser, switched on, leaving base weights and others' adapters as they are.

        For guards that act through the weights. Called by `attach`, and again before every run to make sure: harmless if done
        twice, all or nothing.
        """

    def unload(self, denoiser: nn.Module) -> None:
        """Take exactly these adapters off again; harmless where there are none. Called on detaching, and before the runs of a
        disabled guard.
        """

    def start(self, run: Run) -> Any:
        """Allocate this call's state, one row per image; reachable as `step.state`. Move networks to
        `run.device`.
        """
        return None

    def on_prompt(self, step: Step) -> Tensor | Embeds:
        """Replace the conditioning once, before the first denoiser call; it then holds for the whole run.

        Called again only if the pipeline itself passes other embeddings later on. Return `step.prompt_embeds`
        to leave everything as it is, a Tensor (B, L, D) to replace the conditional rows, or an `Embeds`.
        """
        return step.prompt_embeds

    def extra_prompts(self, run: Run) -> Sequence[str] | Tensor | None:
        """More conditional rows for the same denoiser call: E texts, or embeddings (E, L, D) or (E, B, L, D).

        Their predictions arrive as `step.pred_extra`, E tensors shaped like `pred_cond`. Asked once a run.
        """
        return None

    def extra_embeds(self, step: Step, extra: Encoded | None) -> Encoded | None:
        """Conditioning of the extra rows of this one call, parts (E, B, ...); None for no extra rows in this call.

        `extra` is what `extra_prompts` asked for, encoded (`pooled` or `mask` None stands for the image's own). Override to
        make rows out of the images' own prompts, or to let them ride in some steps only.
        """
        return extra

    def extra_latents(self, step: Step) -> Apart | None:
        """Latents that the extra rows of this call see in place of the image's; None for the image's. See `Run.solver`.

        Under guidance one more row rides along, unconditional, at the same latents.
        """
        return None

    def on_step_start(self, step: Step) -> Tensor | Embeds:
        """Replace the conditioning of this denoiser call only. Returns as `on_prompt`."""
        return step.prompt_embeds

    def on_skip_features(self, step: Step, skip: SkipFeatures) -> Tensor:
        """Replace the conditional rows of skip features in this denoiser call; UNets only, once for each layer that has
        them. Return `skip.cond` for "untouched".
        """
        return skip.cond

    def on_prediction(self, step: Step) -> Tensor:
        """Replace the guided prediction; return `step.pred` for "untouched"."""
        assert step.pred is not None
        return step.pred

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        """Look at, or replace, the denoised estimate (B, C, h, w) float32; return `x0` for "untouched"."""
        return x0

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        """Look at, or replace, the latents after the scheduler's step; return `latents` for "untouched"."""
        return latents

    def verdict(self, run: Run, state: Any) -> list[Decision]:
        """One Decision per image, in batch order, once the last step is done."""
        return [
            Decision(guard=self.method, concept=self.config.concept, image=image) for image in range(run.batch_size)
        ]

    def uses(self, point: str) -> bool:
        """Whether this class overrides the named point of intervention. A guard that needs one only under some settings may
        override this, too.
        """
        return getattr(type(self), point) is not getattr(Guard, point)

    def tensors(self) -> dict[str, Tensor]:
        """Weights to save in `model.safetensors`; empty for a method without weights."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the weights `tensors` returned, checking names and shapes."""
        if tensors:
            raise GuardConfigError(f"guard {self.method!r} has no weights, but {len(tensors)} tensors were found.")

    def card(self) -> str:
        """The model card, Markdown, that is saved beside the weights."""
        return (
            f"# {self.method} guard for “{self.config.concept}”\n\nMade with saferedir. Load it with "
            "`saferedir.Guard.from_pretrained(...)`; all facts are in `guard_config.json`.\n"
        )

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write `guard_config.json`, `model.safetensors` (if any) and `README.md`; all or nothing."""
        from saferedir.storage import save_guard

        return save_guard(self, Path(directory))

    @classmethod
    def from_pretrained(cls, name: str | Path, force: bool = False) -> Self:
        """Load a packaged guard ("pictoworld/star"), a folder, or a Hugging Face hub id.

        The class comes from the config's "method"; calling this on a subclass insists on that subclass. With
        `force` the guard is not bound to the backbone it was trained for.
        """
        from saferedir.storage import load_guard

        return load_guard(cls, name, force=force)

    def push_to_hub(self, repo_id: str, **upload_kwargs: Any) -> str:
        """Upload the guard folder to the Hugging Face hub; returns the commit URL."""
        from saferedir.storage import push_guard

        return push_guard(self, repo_id, **upload_kwargs)
