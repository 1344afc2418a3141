"""Guards as techniques of the benchmark eval-unlearn, so that its runners and metrics can score them.

There a technique is any callable that takes the config's keys and returns an object with `generate(prompts, seed)`; it
is found through an entry point of the group eval_unlearn.techniques (see pyproject.toml), so nothing of that package is
imported here. How to use it, and its limits: docs/interop.md.

Conventions taken from that benchmark (1.1.2): names and defaults of shared keys; float16 on CUDA; prompt i of a call starts from
noise of seed + i, generated on the device; the pipeline's own safety checker is off, so that the technique alone is scored.

Deviations: unknown keys are errors (there they are dropped, and a misspelt "guard" would score something else); prompts are never
logged; several prompts may share a pipeline call; `seed` may stand in the config, for its command line passes none.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from saferedir.errors import GuardConfigError, GuardError
from saferedir.guards.base import Guard
from saferedir.guards.registry import guard_class
from saferedir.pipelines.guiders import guided_call
from saferedir.pipelines.loading import load_pipeline
from saferedir.pipelines.safety_checker import remove_safety_checker
from saferedir.protect import protect
from saferedir.utils.calls import for_each_prompt
from saferedir.utils.images import output_images
from saferedir.utils.names import unknown_name_message
from saferedir.utils.renamed import OldAttribute

logger = logging.getLogger(__name__)

DTYPES = ("float16", "bfloat16", "float32")
#: arguments of the pipeline's call that `generate` sets itself
OWN_ARGUMENTS = ("prompt", "generator", "num_images_per_prompt", "output_type", "return_dict")

#: (guard class, concept, settings of the method) -> a guard that needs no training
Maker = Callable[[type[Guard[Any]], str, dict[str, Any]], Guard[Any]]


@dataclass(frozen=True, kw_only=True)
class TechniqueConfig:
    """Keys of a technique's "config".

    Attributes:
        model_id: pipeline to guard: "pictoworld", a diffusers folder, or a hub id.
        guard: saved guard or guards (packaged name, folder, hub id), which act in this order.
        erase_concept: the concept. A guard made here is made for it; a saved one knows its own, and this is only the name in
            the report (the benchmark's metric "err" wants it to be "nudity").
        guard_config: instead of `guard`: settings of the technique's method, its config's fields, with "preset" where it has
            presets and "negation_set" (a file of `saferedir negation build`) where it works with images.
        policy, retries: as `on_unsafe` and `retries` of `saferedir.protect`; a blocked image is a black one.
        force: attach a guard to a backbone other than its own.
        device: torch device; None is CUDA where there is one, else the CPU.
        use_fp16: float16 on CUDA, else float32.
        dtype: "float16", "bfloat16" or "float32", wins over it.
        num_inference_steps, guidance_scale, call: of the pipeline's call; `call` holds all others (height, width, …).
        batch_size: prompts in one pipeline call.
        seed: where the runner passes none; None generates other noise in each run.
        safety_checker: keep the pipeline's own one.
    """

    model_id: str
    guard: str | Sequence[str] = ()
    erase_concept: str = ""
    guard_config: Mapping[str, Any] = field(default_factory=dict)
    policy: str = "redirect"
    retries: int = 2
    force: bool = False
    device: str | None = None
    use_fp16: bool = True
    dtype: str | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    call: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 1
    seed: int | None = None
    safety_checker: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise GuardConfigError(f"dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}.")
        for name in ("num_inference_steps", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise GuardConfigError(f"{name} is {value!r}; expected a whole number >= 1.")
        refuse_own_arguments(self.call)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TechniqueConfig:
        """The config of a run's "config" object; unknown keys and a missing model are one sentence."""
        known = [entry.name for entry in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise GuardConfigError(unknown_name_message("key of a saferedir technique", name, known))
        if not values.get("model_id"):
            raise GuardConfigError(
                'a saferedir technique needs "model_id": "pictoworld", a diffusers folder, or a hub id.'
            )
        return cls(**values)

    @property
    def guards(self) -> tuple[str, ...]:
        """Names of the saved guards."""
        return ((self.guard,) if self.guard else ()) if isinstance(self.guard, str) else tuple(self.guard)

    @property
    def torch_device(self) -> torch.device:
        """Where to generate."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    #: the old name
    place = OldAttribute("torch_device")

    @property
    def torch_dtype(self) -> torch.dtype:
        """Number format of the pipeline."""
        is_half = self.use_fp16 and self.torch_device.type == "cuda"
        dtype: torch.dtype = getattr(torch, self.dtype or ("float16" if is_half else "float32"))
        return dtype


def refuse_own_arguments(call: Mapping[str, Any]) -> None:
    """Raise on an argument of the pipeline's call that is not the caller's to set."""
    for name in OWN_ARGUMENTS:
        if name in call:
            raise GuardConfigError(
                f"{name!r} is set by the technique itself; leave it out of the pipeline's arguments."
            )


class GuardTechnique:
    """One guarded pipeline, as a runner uses it. It fails closed: where a guard cannot do its work `generate` raises, which ends
    the benchmark's run, and no image of that call has reached a metric or the disk.
    """

    def __init__(self, technique: Technique, values: Mapping[str, Any]) -> None:
        self.config = TechniqueConfig.from_dict(values)
        guards = technique.guards(self.config)
        pipe = load_pipeline(self.config.model_id, dtype=self.config.torch_dtype, device=self.config.torch_device)
        pipe.set_progress_bar_config(disable=True)
        if not self.config.safety_checker:
            remove_safety_checker(pipe)
        #: images that the policy blocked so far
        self.blocked = 0
        self.pipe = protect(
            pipe, guards, on_unsafe=self.config.policy, retries=self.config.retries, force=self.config.force
        )

    def generate(self, prompts: Sequence[str], seed: int | None = None, **call: Any) -> list[Image.Image]:
        """One image a prompt, in order. `call`: arguments of the pipeline's call, which win over the config.

        Raises:
            GuardError: an image could not be guarded from first to last step, or is none.
        """
        refuse_own_arguments(call)
        seed = self.config.seed if seed is None else seed
        images: list[Image.Image] = []
        for start in range(0, len(prompts), self.config.batch_size):
            chunk = list(prompts[start : start + self.config.batch_size])
            images += self._generate(chunk, None if seed is None else seed + start, call)
        return images

    def _generate(self, prompts: list[str], seed: int | None, call: Mapping[str, Any]) -> list[Image.Image]:
        generators = None
        if seed is not None:
            generators = [
                torch.Generator(self.config.torch_device).manual_seed(seed + row) for row in range(len(prompts))
            ]
        settings = {
            "num_inference_steps": self.config.num_inference_steps,
            "guidance_scale": self.config.guidance_scale,
            **self.config.call,
            **call,
        }
        with guided_call(self.pipe, for_each_prompt(settings, len(prompts))) as given:
            output = self.pipe(prompt=prompts, generator=generators, output_type="pil", **given)
        images = list(output_images(output))
        if len(images) != len(prompts) or not all(isinstance(image, Image.Image) for image in images):
            raise GuardError(
                f"{len(images)} images came back for {len(prompts)} prompts, so none is scored; expected a text-to-image "
                f"pipeline, {self.config.model_id!r} is another kind."
            )
        blocked = sum(output.blocked)
        self.blocked += blocked
        if blocked:
            logger.warning(
                "%d of %d images were blocked, so black ones are scored in their place", blocked, len(images)
            )
        return images


@dataclass(frozen=True)
class Technique:
    """A row of the table: a name in the benchmark, the guard method behind it, and how to make such a guard on the spot.

    Attributes:
        name: of the entry point.
        method: as in `guards.registry`; None for any.
        make: None where the method has to be trained first.
    """

    name: str
    method: str | None
    make: Maker | None = None

    def __call__(self, **config: Any) -> GuardTechnique:
        """What the benchmark calls to set the technique up."""
        return GuardTechnique(self, config)

    def guards(self, config: TechniqueConfig) -> list[Guard[Any]]:
        """The guards that a config asks for, at least one."""
        if config.guards:
            if config.guard_config:
                raise GuardConfigError(
                    f'technique {self.name!r} has both "guard" and "guard_config"; a saved guard brings its own settings.'
                )
            return [self._saved(name, config.erase_concept) for name in config.guards]
        if self.make is None or self.method is None:
            raise GuardConfigError(
                f'technique {self.name!r} needs "guard": a packaged guard, a folder of `saferedir train`, or a hub id.'
            )
        if not config.erase_concept:
            raise GuardConfigError(f'technique {self.name!r} needs "erase_concept", or a saved "guard".')
        return [self.make(guard_class(self.method), config.erase_concept, dict(config.guard_config))]

    def _saved(self, name: str, concept: str) -> Guard[Any]:
        guard: Guard[Any] = Guard.from_pretrained(name)
        if self.method not in (None, guard.method):
            raise GuardConfigError(
                f'{name!r} is a {guard.method} guard, technique {self.name!r} takes {self.method}; use "saferedir" for any.'
            )
        if concept and concept.lower() != guard.config.concept.lower():
            logger.warning("the report will say %r; guard %r is against %r", concept, name, guard.config.concept)
        return guard


def from_words(kind: type[Guard[Any]], concept: str, settings: dict[str, Any]) -> Guard[Any]:
    """A guard that is given the concept in words; "preset" names a preset of the method, where it has any."""
    values = dict(settings)
    config: Any = kind.config_class
    if "preset" in values and hasattr(config, "preset"):
        values = {**config.preset(values.pop("preset"), concept=concept).to_dict(), **values}
    return kind(config.from_dict({**values, "concept": concept}))


def from_images(kind: type[Guard[Any]], concept: str, settings: dict[str, Any]) -> Guard[Any]:
    """A guard that is given the concept as a negation set."""
    values = dict(settings)
    path = values.pop("negation_set", None)
    if not path:
        raise GuardConfigError(
            f'guard_config of {kind.method} needs "negation_set", a file of `saferedir negation build`, or give a saved "guard".'
        )
    made: Guard[Any] = kind.from_set(path, concept=concept, **values)  # type: ignore[attr-defined]
    return made


saferedir = Technique("saferedir", method=None)
saferedir_duo = Technique("saferedir_duo", "duo")
saferedir_negative_prompt = Technique("saferedir_negative_prompt", "negative_prompt", from_words)
saferedir_sld = Technique("saferedir_sld", "sld", from_words)
saferedir_safree = Technique("saferedir_safree", "safree", from_words)
saferedir_dual_latent = Technique("saferedir_dual_latent", "dual_latent_r1", from_words)
saferedir_safe_denoiser = Technique("saferedir_safe_denoiser", "safe_denoiser", from_images)
saferedir_spell = Technique("saferedir_spell", "spell", from_images)

#: name -> row; pyproject.toml has an entry point for each, and a test compares the two
TECHNIQUES: Mapping[str, Technique] = {
    row.name: row
    for row in (
        saferedir, saferedir_duo, saferedir_negative_prompt, saferedir_sld, saferedir_safree, saferedir_dual_latent,
        saferedir_safe_denoiser, saferedir_spell,
    )
}  # fmt: skip
