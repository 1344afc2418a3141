"""Models, guards, judges and encoders of a bench, by plain-data specs; loaded when first needed, on whatever worker needs them.

Specs carry checksums; what is loaded must have the same, so a folder changed between two runs, or other on another
machine, is an error and not a number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from saferedir.bench.generation.checksums import model_digest
from saferedir.bench.generation.worlds import world_guards
from saferedir.encoders.base import Encoder
from saferedir.encoders.registry import load_encoder
from saferedir.errors import BenchError, UnsupportedPipelineError
from saferedir.guards.base import Guard
from saferedir.guards.registry import guard_class
from saferedir.judges.base import Judge
from saferedir.judges.registry import load_judge
from saferedir.pipelines.latents import default_size
from saferedir.pipelines.loading import load_pipeline
from saferedir.pipelines.precision import fast_precision, precision_name
from saferedir.pipelines.safety_checker import remove_safety_checker
from saferedir.utils.digests import add_values

#: guards loaded at a time
MAX_LOADED_GUARDS = 64
#: side in pixels of the images of a model that does not say; only the room on the disk is reckoned with it
DEFAULT_SIDE = 1024


@dataclass(frozen=True)
class ModelSpec:
    """A pipeline and how it is called.

    Attributes:
        digest: checksum of its weights, scheduler and scales of its LoRAs, "" before it is known.
        loras: (file, folder or hub id, scale), in order.
    """

    load: str
    batch: int
    dtype: str
    device: str
    fast: bool
    call: Mapping[str, Any]
    digest: str = ""
    variant: str | None = None
    revision: str | None = None
    config: str | None = None
    loras: tuple[tuple[str, float], ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """What `load_pipeline` takes beside name, dtype and device."""
        return {
            "variant": self.variant,
            "revision": self.revision,
            "config": self.config,
            "loras": self.loras,
        }


@dataclass(frozen=True)
class GuardPart:
    """One guard of a stack: where it comes from, as plain data ({"load": …}, {"recipe": …, "concept": …} or {"method": …,
    "config": …}).
    """

    source: Mapping[str, Any]


@dataclass(frozen=True)
class JudgeSpec:
    """A judge and its options; facts: what fixes its scores, and their checksum `digest`, empty before they are known."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    digest: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

    @property
    def key(self) -> str:
        """What tells two judges apart, those of one name with other options among them."""
        return f"{self.name}-{self.digest[:8]}"


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder and its options; facts and digest as of a `JudgeSpec`; reads_texts: whether it encodes texts, too."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    digest: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)
    reads_texts: bool = False

    @property
    def key(self) -> str:
        """What tells two encoders apart, and an encoder from a judge of its name."""
        return f"encoder-{self.name}-{self.digest[:8]}"


#: whoever scores images and leaves something to count: scores, features
Scorer = JudgeSpec | EncoderSpec

T = TypeVar("T")


class Resources:
    """What one process has loaded, each with its checksum. Keeps one pipeline, its guards, and every judge and encoder."""

    def __init__(self) -> None:
        self._model: tuple[str, Any, str] | None = None
        self._guards: dict[str, tuple[list[Guard[Any]], str]] = {}
        self._judges: dict[str, tuple[Judge, str]] = {}
        self._encoders: dict[str, tuple[Encoder, str]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}  # of every model that was ever loaded here

    def pipeline(self, spec: ModelSpec) -> Any:
        """The pipeline, loaded if it is not the one at hand, and never with a safety checker of its own: the black images that
        one puts in the place of others would count as the guard's doing, or the bare model's.

        From the first load on, diffusers and transformers say errors only in this process: their warnings (a prompt that is too
        long for CLIP) quote prompts.
        """
        name = _model_name(spec)
        if self._model is None or self._model[0] != name:
            self._model, self._guards = None, {}  # free the old one first
            _quiet()
            pipe = load_pipeline(spec.load, dtype=getattr(torch, spec.dtype), device=device_of(spec), **spec.arguments)
            pipe.set_progress_bar_config(disable=True)
            remove_safety_checker(pipe)
            self._sizes[name] = _size(pipe)
            self._model = (name, pipe, _digest_of(pipe, spec))
        _same("model", spec.load, spec.digest, self._model[2])
        return self._model[1]

    def model_digest(self, spec: ModelSpec) -> str:
        """Checksum of the pipeline."""
        self.pipeline(spec)
        assert self._model is not None
        return self._model[2]

    def image_size(self, spec: ModelSpec) -> tuple[int, int]:
        """(height, width) in pixels of what the model generates by this spec; `DEFAULT_SIDE` where neither call nor configs
        say.
        """
        height, width = spec.call.get("height"), spec.call.get("width")
        if not (height and width):
            name = _model_name(spec)
            if name not in self._sizes:
                self.pipeline(spec)
            height, width = height or self._sizes[name][0], width or self._sizes[name][1]
        return int(height), int(width)

    def guards(self, model: ModelSpec, parts: Sequence[GuardPart], digest: str = "") -> list[Guard[Any]]:
        """The guards of a stack, in order; [] for the bare model."""
        if not parts:
            return []
        pipe = self.pipeline(model)
        name = _json([part.source for part in parts])
        if name not in self._guards:
            while len(self._guards) >= MAX_LOADED_GUARDS:
                self._guards.pop(next(iter(self._guards)))
            made = [guard for part in parts for guard in _make(part.source, pipe)]
            self._guards[name] = (made, guards_digest(made))
        guards, known = self._guards[name]
        _same("guard", str(parts[0].source), digest, known)
        return guards

    def judge(self, spec: JudgeSpec) -> Judge:
        """The judge."""
        return _loaded("judge", spec, self._judges, load_judge, judge_digest)

    def encoder(self, spec: EncoderSpec) -> Encoder:
        """The encoder."""
        return _loaded("encoder", spec, self._encoders, load_encoder, encoder_digest)

    def precision(self, spec: ModelSpec, pipe: Any) -> AbstractContextManager[Any]:
        """The arithmetic that its images are generated in."""
        return fast_precision(pipe.device) if _is_fast(spec, pipe) else nullcontext()

    def precision_name(self, spec: ModelSpec, pipe: Any) -> str:
        """The same in words, for records."""
        return precision_name(pipe.device) if _is_fast(spec, pipe) else spec.dtype

    def arithmetic(self, spec: ModelSpec, pipe: Any) -> str:
        """Kind of device and precision, as a set's key has them ("cpu, bf16 autocast")."""
        return f"{pipe.device.type}, {self.precision_name(spec, pipe)}"

    def device_name(self, spec: ModelSpec) -> str:
        """Where it runs, in words."""
        device = device_of(spec)
        if device.type == "cuda":
            return torch.cuda.get_device_name(device)
        return f"CPU, {torch.get_num_threads()} thread(s)" if device.type == "cpu" else device.type


def device_of(spec: ModelSpec) -> torch.device:
    """The device of a model: an accelerator for "auto" where there is one."""
    if spec.device != "auto":
        return torch.device(spec.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _digest_of(pipe: Any, spec: ModelSpec) -> str:
    """Checksum of a pipeline, and of its LoRAs' scales, which no weight of it holds."""
    digest = model_digest(pipe)
    return _short(_json([digest, [scale for _, scale in spec.loras]])) if spec.loras else digest


def _model_name(spec: ModelSpec) -> str:
    return _json([spec.load, spec.dtype, spec.device, spec.arguments])


def _quiet() -> None:
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()


def _size(pipe: Any) -> tuple[int, int]:
    try:
        return default_size(pipe)
    except UnsupportedPipelineError:
        return DEFAULT_SIDE, DEFAULT_SIDE


def _is_fast(spec: ModelSpec, pipe: Any) -> bool:
    return spec.fast and spec.dtype == "float32" and bool(pipe.device.type == "cpu")


def _make(source: Mapping[str, Any], pipe: Any) -> list[Guard[Any]]:
    if "load" in source:
        return [Guard.from_pretrained(source["load"], force=bool(source.get("force", False)))]
    if "recipe" in source:
        return world_guards(source["recipe"], source["concept"], pipe)
    kind = guard_class(source["method"])
    config = dict(source["config"])
    preset = config.pop("preset", None)
    if preset is not None and not hasattr(kind.config_class, "preset"):
        raise BenchError(f"guard method {source['method']!r} has no presets; leave `preset` out of its config.")
    config_class: Any = kind.config_class
    settings = config_class.from_dict(config) if preset is None else config_class.preset(preset, **config)
    return [kind(settings)]


def guards_digest(guards: Sequence[Guard[Any]]) -> str:
    """Checksum of a stack, in order: methods, settings, weights, what is only logged, a policy's anchors.

    Records of measurements and training do not count.
    """
    digest = hashlib.sha256()
    for guard in guards:
        settings = {k: v for k, v in guard.config.settings().items() if k not in ("training", "measured", "backbone")}
        digest.update(_json([guard.method, settings | guard.set_by_policy()]).encode())
        add_values(digest, guard.tensors())
    return digest.hexdigest()[:16]


def judge_digest(judge: Judge) -> str:
    """Checksum of what fixes a judge's scores."""
    return _short(_json([judge.name, judge.facts(), list(judge.labels)]))


def encoder_digest(encoder: Encoder) -> str:
    """Checksum of what fixes an encoder's vectors: of its weights, where they are known, and not of the path to them."""
    facts = encoder.facts()
    if facts.get("weights", "unknown") != "unknown":
        del facts["id"]
    return _short(_json([encoder.name, facts]))


def _loaded(
    kind: str, spec: Scorer, known: dict[str, tuple[T, str]], load: Callable[..., T], digest_of: Callable[[T], str]
) -> T:
    """What the spec names, loaded once, with the checksum that the spec expects."""
    name = _json([spec.name, spec.options])
    if name not in known:
        made = load(spec.name, **spec.options)
        known[name] = (made, digest_of(made))
    made_before, digest = known[name]
    _same(kind, spec.name, spec.digest, digest)
    return made_before


def _same(kind: str, name: str, expected: str, actual: str) -> None:
    """Raise unless the checksum is the expected one; "" expects nothing."""
    if expected and expected != actual:
        raise BenchError(
            f"{kind} {name!r} is not the one the bench was planned with (checksum {actual}, not {expected}); it has changed, or "
            "is another on this machine. Plan again with `saferedir bench run`."
        )


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
