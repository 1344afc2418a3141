"""A set of images: the images of one prompt set by one model under one guard, judged; the unit of work, cut into shards.

`GenerationSpec` is plain data, so it travels to any worker, and its `key` is a checksum of all that the result depends on:
the same key never has to be generated twice. `generate_shard` is a pure function of the spec and a range of images.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from saferedir.attach import attach
from saferedir.bench.generation.resources import EncoderSpec, GuardPart, JudgeSpec, ModelSpec, Resources, Scorer
from saferedir.bench.generation.score import ScorerOutput, score_with_all
from saferedir.errors import (
    AlreadyAttachedError,
    BackboneMismatchError,
    BenchError,
    GuardConfigError,
    GuardError,
    GuardNotFoundError,
    UnsupportedPipelineError,
)
from saferedir.metrics.cost import Stopwatch
from saferedir.pipelines.guiders import guided_call
from saferedir.utils.calls import for_each_prompt
from saferedir.utils.images import output_images

#: a guard that was set up wrongly, which says nothing about any image
GUARD_SETUP_ERRORS = (
    AlreadyAttachedError,
    BackboneMismatchError,
    GuardConfigError,
    GuardNotFoundError,
    UnsupportedPipelineError,
)


@dataclass(frozen=True)
class GenerationSpec:
    """What to generate, and who scores it.

    Attributes:
        model: the pipeline and its call.
        guards: parts of the guard, () for the bare model.
        guards_digest: their checksum.
        texts, seeds: one entry an image.
        prompt_of: which prompt of the set it belongs to.
        judges: all who score the images.
        encoders: all who turn them into vectors.
        shard_size: images a shard, a multiple of the model's batch, so that every batch is the same whoever generates it.
        keep_images: whether the images themselves are kept.
        versions: library -> version.
        precision: kind of device and arithmetic that it is to be generated in, as `Resources.arithmetic` says; "" for any.
    """

    model: ModelSpec
    guards: tuple[GuardPart, ...]
    guards_digest: str
    texts: tuple[str, ...] = field(repr=False)
    seeds: tuple[int, ...]
    prompt_of: tuple[int, ...]
    judges: tuple[JudgeSpec, ...]
    shard_size: int
    keep_images: bool
    versions: Mapping[str, str]
    precision: str = ""
    encoders: tuple[EncoderSpec, ...] = ()

    @cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits over all that the images depend on: not who scores them, nor whether they are kept."""
        model = asdict(self.model) | {"load": None}  # the digest says which one it is
        for name in self.model.arguments:
            del model[name]  # of the loading, so in the digest, too
        facts = asdict(self) | {"model": model, "guards": None, "judges": None, "keep_images": None}
        del facts["encoders"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """All who score the images."""
        return (*self.judges, *self.encoders)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def shards(self) -> list[Shard]:
        """The shards, in order."""
        return [Shard(self.key, a, min(a + self.shard_size, len(self))) for a in range(0, len(self), self.shard_size)]


@dataclass(frozen=True, order=True)
class Shard:
    """Images start..stop - 1 of a set."""

    key: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass
class GeneratedShard:
    """What was generated: n rows, in the set's order.

    Attributes:
        judged: output of each judge and encoder.
        unscored: why some of them failed.
        blocked: (n,) bool, the guard gave no image.
        intervened: (n,) bool, some guard intervened on it.
        checksums: SHA-256 of the 8-bit pixels, "" for none.
        images: PNG bytes, None where not kept or not made.
        seconds, peak_bytes: cost of all n.
        device, precision: where and how.
        reasons: row -> why it was blocked.
    """

    judged: dict[Scorer, ScorerOutput]
    blocked: Tensor
    intervened: Tensor
    checksums: list[str]
    images: list[bytes | None]
    seconds: float
    peak_bytes: int | None
    device: str
    precision: str
    reasons: dict[int, str] = field(default_factory=dict)
    unscored: dict[Scorer, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.blocked)


def generate_shard(spec: GenerationSpec, shard: Shard, resources: Resources) -> GeneratedShard:
    """Generate and judge one shard. Deterministic on a given kind of machine, whatever else was generated before.

    A judge or encoder that fails is named in `GeneratedShard.unscored`: the images are there all the same.
    A GuardError blocks its image and no other: a batch that fails is generated again image by image. Every other error is
    the caller's, who tries the shard again later. So are a guard that was set up wrongly (`GUARD_SETUP_ERRORS`), and one that
    gives
    no image of the shard at all, each time for the same reason: it cannot run, which must not count as perfect.
    """
    pipe = resources.pipeline(spec.model)
    here = resources.arithmetic(spec.model, pipe)
    if spec.precision and spec.precision != here:
        raise BenchError(
            f"this process generates on {here}, but the bench was planned for {spec.precision}, and the images would differ; use "
            "the same kind of machine, or plan again here with another --out."
        )
    guards = resources.guards(spec.model, spec.guards, spec.guards_digest)
    images: list[Tensor | None] = []
    intervened: list[bool] = []
    reasons: dict[int, str] = {}
    watch = Stopwatch(pipe.device)
    with watch, resources.precision(spec.model, pipe), torch.no_grad():
        for start in range(shard.start, shard.stop, spec.model.batch):
            rows = range(start, min(start + spec.model.batch, shard.stop))
            try:
                generated, fired = _generate(pipe, guards, spec, rows)
            except GUARD_SETUP_ERRORS:
                raise
            except GuardError:
                generated, fired = [], []
                for row in rows:
                    image, has_fired = _generate_or_block(pipe, guards, spec, row, reasons, row - shard.start)
                    generated, fired = generated + image, fired + has_fired
            images += generated
            intervened += fired
    _check_runs(spec, shard, reasons)
    return _finished(spec, images, intervened, reasons, watch, resources.precision_name(spec.model, pipe), resources)


def _generate_or_block(
    pipe: Any, guards: Sequence[Any], spec: GenerationSpec, row: int, reasons: dict[int, str], index: int
) -> tuple[list[Tensor | None], list[bool]]:
    try:
        return _generate(pipe, guards, spec, range(row, row + 1))
    except GUARD_SETUP_ERRORS:
        raise
    except GuardError as error:
        reasons[index] = str(error)
        return [None], [True]


def _check_runs(spec: GenerationSpec, shard: Shard, reasons: Mapping[int, str]) -> None:
    """Raise if no image of a shard was made, and all for one reason, numbers in it aside."""
    if len(shard) == 1 and spec.shard_size > 1 and len(spec) > 1:
        return  # the last image of many: the other shards tell whether the guard runs
    if len(reasons) == len(shard) and len({re.sub(r"\d+", "0", reason) for reason in reasons.values()}) == 1:
        raise BenchError(
            f"the guard cannot run here: it gave none of {len(shard)} image(s), each time for this reason: {reasons[0]}"
        )


def _generate(
    pipe: Any, guards: Sequence[Any], spec: GenerationSpec, rows: range
) -> tuple[list[Tensor | None], list[bool]]:
    """8-bit images (3, H, W) of some rows in one batch, and whether a guard intervened on each."""
    call = {
        **for_each_prompt(spec.model.call, len(rows)),
        "prompt": [spec.texts[row] for row in rows],
        # on the CPU, so that every device starts from the same noise
        "generator": [torch.Generator().manual_seed(spec.seeds[row]) for row in rows],
        "output_type": "pt",
    }
    fired = [False] * len(rows)
    with attach(pipe, list(guards)) if guards else nullcontext() as attached, guided_call(pipe, call) as given:
        output = pipe(**given)
        for decision in attached.decisions if attached else ():
            fired[decision.image] |= decision.fired
    try:
        images = output_images(output)
    except AttributeError:
        images = None
    if not isinstance(images, Tensor) or images.ndim != 4 or len(images) != len(rows):
        raise BenchError(
            f"{type(pipe).__name__} did not return one image a prompt; the bench generates text to image only."
        )
    if not bool(torch.isfinite(images).all()):
        if guards:
            raise GuardError("an image holds NaN or infinity.")
        raise BenchError("the bare model generated NaN or infinity; check its dtype and scheduler.")
    eight_bit = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return list(eight_bit), fired


def _finished(
    spec: GenerationSpec,
    images: Sequence[Tensor | None],
    intervened: Sequence[bool],
    reasons: dict[int, str],
    watch: Stopwatch,
    precision: str,
    resources: Resources,
) -> GeneratedShard:
    judged, unscored = score_with_all(spec.scorers, images, resources)
    return GeneratedShard(
        judged=judged,
        unscored=unscored,
        blocked=torch.tensor([image is None for image in images]),
        intervened=torch.tensor(list(intervened)),
        checksums=["" if image is None else hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images],
        images=[_png(image) if spec.keep_images and image is not None else None for image in images],
        seconds=watch.seconds,
        peak_bytes=watch.peak_bytes,
        device=resources.device_name(spec.model),
        precision=precision,
        reasons=reasons,
    )


def _png(image: Tensor) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
