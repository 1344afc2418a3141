"""Guard: the base class of every method, and the points at which it may intervene. Guard authors import from `saferedir.guard`.

A guard is pure, differentiable tensor functions over a `Step` (step.py), with a frozen config (config.py); it
never touches a pipeline (`attach` does). Saving and loading live in `storage`; concrete methods in `guards/`.

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

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from saferedir.decisions import Decision
from saferedir.errors import GuardConfigError, GuardError
from saferedir.guards.config import GuardConfig
from saferedir.guards.gates import Gate
from saferedir.guards.image_verifier import ImageVerifier
from saferedir.guards.step import AttentionFeatures, Conditioned, Run, SecondLatents, SkipFeatures, Step
from saferedir.guards.storage import load_guard, push_guard, save_guard
from saferedir.pipelines.conditioning import Conditioning, PromptEmbeds
from saferedir.pipelines.text_settings import TextSettings
from saferedir.utils.renamed import old_name

__all__ = [
    "AttentionFeatures",
    "Conditioning",
    "Guard",
    "GuardConfig",
    "PromptEmbeds",
    "Run",
    "SecondLatents",
    "SkipFeatures",
    "Step",
    "TextSettings",
]

ConfigT = TypeVar("ConfigT", bound=GuardConfig)


class Guard(Generic[ConfigT]):
    """Base class of every guard: override the points of intervention that the method needs, and only those.

    The seam checks which ones are overridden and does no work for the others.

    Attributes:
        config: the settings.
        name: separates it from others of its method in decisions and tables; `from_pretrained` sets the name it was loaded by.
        enabled: a disabled guard is not called at all: the output is bit-identical to the unguarded one.

    Example:
        >>> import saferedir as sr
        >>> guard = sr.Guard.from_pretrained("pictoworld/star")
        >>> guard.method, guard.config.concept
        ('saferedir', 'star')
        >>> sr.Guard.from_pretrained(guard.save_pretrained("runs/star")).config == guard.config
        True
    """

    #: name in the registry and in `guard_config.json`
    method: ClassVar[str] = ""
    config_class: ClassVar[type[GuardConfig]] = GuardConfig
    #: whether it makes a guided prediction of its own; `attach` refuses two such guards on one pipeline
    replaces_guidance: ClassVar[bool] = False
    #: whether it takes the sampler's step anew, or goes on from merged latents, in `on_step_end`; some settings of a guard may,
    #: and others not; `attach` refuses two such guards on one pipeline
    replaces_step: bool = False
    #: whether it reads `step.prompts` and `run.text_encoders`; some settings of a guard may, and others not
    needs_text: bool = False
    #: whether it takes every prompt for one of an unknown text where the pipeline has no text encoder any more
    works_without_texts: bool = False
    #: whether it has words encoded in every run; `attach` refuses it where a text encoder was dropped
    needs_text_encoder: bool = False

    #: what becomes of `latents` that the caller gives and that do not look like noise of the pipeline's prior: "off" takes
    #: them as they are, "refuse" raises, "refresh" puts fresh noise of the run's generator in their place;
    #: "refuse_all" raises whatever they look like; "refresh_all" raises as "refuse" does, and puts a share of noise in the others
    latents_test: str = "off"
    #: share of honest noise that may fail that test, in (0, 1)
    latents_false_positives: float = 1e-3
    #: share of their energy that noise takes the place of under "refresh_all", in (0, 1]
    latents_fresh_share: float = 1.0

    #: whether it tests `prompt_embeds` that the caller gives, and takes those of a text as they are
    tests_embeds: bool = False

    #: whether it acts on every image of every run, whatever it shows; a policy that blocks what it acted on blocks everything
    always_acts: ClassVar[bool] = False
    #: whether a decision of it may be `unresolved`: whether it can tell that the concept is still there at the end. True only of
    #: a method with a classifier of the final estimate, under the settings that use it: a class that says nothing is no verifier,
    #: and `protect(on_unsafe="verify")` asks for one
    may_be_unresolved: bool = False
    #: whether it decides on the prompt apart from the image, and on the image alone where `allowed` says so
    has_prompt_verdict: bool = False
    #: concepts that it scores and never acts on, as a policy's action "log" wants it; they count in the guard's checksums
    logged_concepts: tuple[str, ...] = ()
    #: concept -> prompt that it redirects to in place of what it learned, as a policy's `anchor` wants it (`with_anchors`); they
    #: count in the guard's checksums
    anchor_prompts: Mapping[str, str] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take a subclass's `caution` for its `warning_text`, of which it was the name."""
        super().__init_subclass__(**kwargs)
        old = cls.__dict__.get("caution")
        if old is not None and "warning_text" not in cls.__dict__:
            warnings.warn(
                f"{cls.__name__}.caution is an old name; define {cls.__name__}.warning_text.",
                DeprecationWarning,
                stacklevel=2,
            )
            cls.warning_text = old  # type: ignore[method-assign]

    def __init__(self, config: ConfigT) -> None:
        self.config: ConfigT = config
        #: separates it from others of its method in decisions and tables; `from_pretrained` sets what it was loaded by
        self.name = ""
        #: a disabled guard is not called at all: the output is bit-identical to the unguarded one
        self.enabled = True
        #: a verifier of finished images, trained apart, which the guard's folder brings along; `protect` asks it
        self.image_verifier: ImageVerifier | None = None
        #: names that its decisions have, of a guard that decides concept by concept: B decisions for each name in turn
        self.decision_names: tuple[str, ...] = ()
        #: decision's name -> one flag an image of the next run: its prompt may pass the prompt verdict (a policy's allow-list)
        self.allowed: Mapping[str, tuple[bool, ...]] = {}

    def allowed_images(self, run: Run, *names: str) -> Tensor:
        """(B, N) bool on the run's device: whose prompt verdict is passed over in the decisions of each of N names."""
        if not self.allowed:
            return torch.zeros(run.batch_size, len(names), dtype=torch.bool, device=run.device)
        if any(len(flags) != run.batch_size for flags in self.allowed.values()):
            raise GuardError(
                f"allowed prompts of other images than the run's {run.batch_size} were given; none is generated."
            )
        nobody = (False,) * run.batch_size
        rows = zip(*(self.allowed.get(name, nobody) for name in names), strict=True)
        return torch.tensor(list(rows), dtype=torch.bool, device=run.device)

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        thresholds = "".join(
            f", {entry.name}={value:.2f}"
            for entry in fields(self.config)
            if entry.name.endswith("_threshold") and isinstance(value := getattr(self.config, entry.name), float)
        )
        state = "" if self.enabled else ", disabled"
        return f"{type(self).__name__}({name}concept={self.config.concept!r}{thresholds}{state})"

    def warning_text(self) -> str | None:
        """One sentence for whoever attaches this guard, such as a verdict that is weak by its own record; None for none.

        `attach` warns with it.
        """
        return None

    def weak_verdicts(self) -> Mapping[str, float]:
        """Concepts of which no run can tell whether its image still shows them, by the guard's own record -> the recall, 0 to 1.

        Decisions on them are `unverified` whatever the number of steps: "block" blocks every image that nobody else checks.
        """
        return {}

    def refusal_text(self) -> str | None:
        """One sentence why this guard cannot be attached under its settings, and what to do; None where it can.

        `attach` raises GuardError with it.
        """
        return None

    def caution(self) -> str | None:
        """The old name of `warning_text`."""
        warnings.warn("Guard.caution is an old name; use Guard.warning_text.", DeprecationWarning, stacklevel=2)
        namespaces = [base.__dict__ for base in type(self).__mro__ if "warning_text" in base.__dict__]
        text = next(names["warning_text"] for names in namespaces if names["warning_text"] is not names.get("caution"))
        answer: str | None = text(self)  # a subclass's own `caution` may have called this one
        return answer

    def load(self, denoiser: nn.Module) -> None:
        """Put this guard's adapters on the denoiser, switched on, leaving base weights and others' adapters as they are.

        For guards that act through the weights; those of further denoisers (Wan 2.2) are out of reach, so that `attach` refuses a
        guard with `unload` there. Called by `attach`, and again before every run to make sure: harmless if done
        twice, all or nothing.

        Args:
            denoiser: the pipeline's UNet or transformer.
        """

    def unload(self, denoiser: nn.Module) -> None:
        """Take exactly these adapters off again; harmless where there are none.

        Called on detaching, and before the runs of a disabled guard.

        Args:
            denoiser: the pipeline's UNet or transformer.
        """

    def compile(self, **options: Any) -> None:
        """Compile the networks that every step asks, in place, by `torch.compile`, as `nn.Module.compile` does.

        That is SafeRedir's redirector. Image verifiers and deep copies of the guard are not compiled, and guards without a
        network are left as they are. No gain was measured on PictoWorld (docs/performance.md).

        Args:
            options: of `torch.compile`, such as `mode="max-autotune"` and `fullgraph=True`.

        Example:
            >>> import saferedir as sr
            >>> guard = sr.Guard.from_pretrained("pictoworld/star")
            >>> guard.compile(fullgraph=True)
        """

    def with_anchors(self, anchors: str | Mapping[str, str]) -> Self:
        """This guard redirecting to other prompts than those it learned; what it holds beside them is shared.

        Args:
            anchors: one prompt for all its concepts, or concept -> prompt for some of them.

        Raises:
            GuardConfigError: the guard redirects to no prompt.
        """
        raise GuardConfigError(
            f"guard {self.method!r} ({self.config.concept}) redirects to no prompt that could be another one; leave out anchor."
        )

    def set_by_policy(self) -> dict[str, Any]:
        """What a policy set beside the config, for checksums: `logged_concepts` and `anchor_prompts`, each only where set."""
        logged, anchors = list(self.logged_concepts), dict(self.anchor_prompts)
        return {**({"logged_concepts": logged} if logged else {}), **({"anchor_prompts": anchors} if anchors else {})}

    def take_anchors(self, embeds: PromptEmbeds) -> None:
        """Take the conditioning of the distinct `anchor_prompts`, in their order; `attach` calls it, once.

        Args:
            embeds: of N prompts, by the encoder of the pipeline that the guard is being attached to.
        """

    def prompt_gates(self, embeds: PromptEmbeds) -> Mapping[str, Gate]:
        """Prompt verdicts on N prompts, outside of a run: name of each concept that it acts on -> (N,) scores and a threshold.

        {} for a guard without a prompt verdict, and for embeddings of another width than it was made for. `attach` refuses an
        anchor whose score is at or above a threshold.

        Args:
            embeds: of N prompts, by the encoder of the pipeline that the guard is being attached to.
        """
        return {}

    def rule_name(self, concept: str) -> str:
        """What one of its concepts is called in a policy: the name of its decisions, or the concept itself."""
        return concept

    def check_text(self, text: TextSettings) -> None:
        """Raise GuardError where this guard cannot judge prompts that are encoded under these settings.

        Called before every run whose prompts are texts, and by the bench before it begins. For guards that judge embeddings.

        Args:
            text: the settings of the call.
        """

    def start(self, run: Run) -> Any:
        """Allocate this call's state, one row per image; reachable as `step.state`.

        Args:
            run: facts of the call; move networks to `run.device`.

        Returns:
            Any object; None for a guard that remembers nothing.
        """
        return None

    def on_prompt(self, step: Step) -> Conditioned:
        """Replace the conditioning once, before the first denoiser call; it then holds for the whole run.

        Called again only if the pipeline itself passes other embeddings later on.

        Args:
            step: the moment before the first denoiser call.

        Returns:
            `step.conditioning` to leave everything as it is, or another `Conditioning`: its parts that are the same objects, or
            None, are left as they are (`step.conditioning.with_cond(prompt=...)`). A Tensor (B, L, D) stands for
            `with_cond(prompt=...)`. Where `step.conditioning.uncond` is None an `uncond` is kept for the later call that has one.
        """
        return step.conditioning

    def extra_prompts(self, run: Run) -> Sequence[str] | Tensor | None:
        """More conditional rows for the same denoiser call: E texts, or embeddings (E, L, D) or (E, B, L, D).

        Their predictions arrive as `step.pred_extra`, E tensors shaped like `pred_cond`. Asked once a run.
        """
        return None

    def extra_embeds(self, step: Step, extra: PromptEmbeds | None) -> PromptEmbeds | None:
        """Conditioning of the extra rows of this one call, parts (E, B, ...); None for no extra rows in this call.

        `extra` is what `extra_prompts` asked for, encoded (`pooled` or `mask` None stands for the image's own). Override to
        make rows out of the images' own prompts, or to add them in some steps only.
        """
        return extra

    def extra_latents(self, step: Step) -> SecondLatents | None:
        """Latents of the extra rows of this call in place of the image's; None for the image's. See `Run.solver`.

        Under guidance one more extra row is added, unconditional, at the same latents.
        """
        return None

    def on_step_start(self, step: Step) -> Conditioned:
        """Replace the conditioning of this denoiser call only. Returns as `on_prompt`."""
        return step.conditioning

    def on_skip_features(self, step: Step, skip: SkipFeatures) -> Tensor:
        """Replace the conditional rows of skip features in this denoiser call; return `skip.cond` for "untouched".

        Called for UNets only, once for each layer that has skip features.

        Args:
            step: the moment before the denoiser call.
            skip: the features.

        Returns:
            (B, C, h, w), of the conditional rows.
        """
        return skip.cond

    def on_attention(self, step: Step, attention: AttentionFeatures) -> Tensor:
        """Replace what attention to the prompt brings to the conditional rows; return `attention.cond` for "untouched".

        Called in the denoiser call of the prompts, once for each layer in which image tokens attend to prompt tokens. The extra
        rows of this guard go on from the answer, too: their image stays that of the conditional row, and only their prompt
        differs. For denoisers whose layers keep image and prompt apart, or have the prompt first in one sequence.

        Args:
            step: the moment before the denoiser call.
            attention: the features of one layer.

        Returns:
            (B, N, D), of the conditional rows.
        """
        return attention.cond

    def on_prediction(self, step: Step) -> Tensor:
        """Replace the guided prediction; return `step.pred` for "untouched".

        Args:
            step: the moment after the denoiser call.

        Returns:
            (B, C, h, w), in the dtype of `step.pred`.
        """
        assert step.pred is not None
        return step.pred

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        """Read, or replace, the denoised estimate; return `x0` for "untouched".

        Args:
            step: the moment after the denoiser call.
            x0: (B, C, h, w) float32, with the edits of the guards before this one.

        Returns:
            (B, C, h, w) float32.
        """
        return x0

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        """Read, or replace, the latents after the scheduler's step; return `latents` for "untouched".

        Args:
            step: the moment after the denoiser call.
            latents: (B, C, h, w), which the next denoiser call gets.

        Returns:
            (B, C, h, w), in the dtype of `latents`.
        """
        return latents

    def verdict(self, run: Run, state: Any) -> list[Decision]:
        """One Decision per image, in batch order, once the last step is done.

        Args:
            run: facts of the call.
            state: what `start` returned.
        """
        return [
            Decision(guard=self.method, concept=self.config.concept, image=image) for image in range(run.batch_size)
        ]

    def gates(self, state: Any) -> Mapping[str, Gate]:
        """What decides whether it acts, as of the latest evaluation, in the graph; {} for a guard that always acts.

        For those who attack it, or watch it: the seam itself never asks.
        """
        return {}

    def would_repeat(self, decision: Decision) -> bool:
        """Whether a retry of this image would be the run of `decision` over again: from step 0 on it acted as strongly as it can.

        False where a retry acts more strongly, or nobody knows. `protect` blocks such an image and does not generate it again.

        Args:
            decision: of this guard, on one image; its last try was number `decision.attempts`, of level `attempts` - 1.
        """
        return False

    def differentiable(self) -> Self:
        """This guard with a gradient through its hard decisions: the same values, a surrogate's derivative.

        Itself where nothing in it is hard. For those who attack it; it shares its weights with this one.
        """
        return self

    def uses(self, point: str) -> bool:
        """Whether this class overrides the named point of intervention.

        A guard that needs one only under some settings may override this, too.
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
        """Write `guard_config.json`, `model.safetensors` (if any) and `README.md`; all or nothing.

        GuardConfigError for a guard with anchors of a policy, which its folder does not hold.
        """
        return save_guard(self, Path(directory))

    @classmethod
    def from_pretrained(cls, name: str | Path, force: bool = False) -> Self:
        """Load a packaged guard ("pictoworld/star"), a folder, or a Hugging Face hub id.

        The class comes from the config's "method"; called on a subclass it takes that subclass only. With
        `force` the guard is not bound to the backbone it was trained for.
        """
        return load_guard(cls, name, force=force)

    def push_to_hub(self, repo_id: str, **upload_kwargs: Any) -> str:
        """Upload the guard folder to the Hugging Face hub; returns the commit URL."""
        return push_guard(self, repo_id, **upload_kwargs)


def __getattr__(name: str) -> Any:
    return old_name(__name__, name)
