"""A drawing: the pictures of one prompt set by one model under one guard, judged; the unit of work, cut into shards.

`GenerationSpec` is plain data, so it travels to any worker, and its `key` is a checksum of all that the result depends on:
the same key never has to be drawn twice. `generate_shard` is a pure function of the spec and a range of pictures.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
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
from saferedir.utils.calls import for_each_prompt

#: a guard that was set up wrongly, which says nothing about any picture
GUARD_SETUP_ERRORS = (
    AlreadyAttachedError,
    BackboneMismatchError,
    GuardConfigError,
    GuardNotFoundError,
    UnsupportedPipelineError,
)


@dataclass(frozen=True)
class GenerationSpec:
    """What to draw, and who looks at it.

    Attributes:
        model: the pipeline and its call; guards: parts of the guard, () for the bare model; guards_digest: their checksum.
        texts, seeds: one entry a picture; prompt_of: which prompt of the set it belongs to.
        judges: all who score the pictures; encoders: all who turn them into vectors.
        shard_size: pictures a shard, a multiple of the model's batch, so that every batch is the same whoever draws it.
        keep_images: whether the pictures themselves are kept.
        versions: library -> version.
        precision: kind of device and arithmetic that it is to be drawn in, as `Resources.arithmetic` says; "" for any.
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
        """Sixteen hexadecimal digits over all that the pictures depend on: not who looks at them, nor whether they are kept."""
        model = asdict(self.model) | {"load": None}  # the digest says which one it is
        facts = asdict(self) | {"model": model, "guards": None, "judges": None, "keep_images": None}
        del facts["encoders"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """All who look at the pictures."""
        return (*self.judges, *self.encoders)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def shards(self) -> list[Shard]:
        """The shards, in order."""
        return [Shard(self.key, a, min(a + self.shard_size, len(self))) for a in range(0, len(self), self.shard_size)]


@dataclass(frozen=True, order=True)
class Shard:
    """Pictures start..stop - 1 of a drawing."""

    key: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass
class Pictures:
    """What was drawn: n rows, in the drawing's order.

    Attributes:
        judged: what each judge and encoder saw; unscored: why some of them failed, and saw nothing.
        blocked: (n,) bool, the guard gave no picture; intervened: (n,) bool, some guard intervened on it.
        checksums: SHA-256 of the 8-bit pixels, "" for none; images: PNG bytes, None where not kept or not made.
        seconds, peak_bytes: cost of all n; device, precision: where and how.
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


def generate_shard(spec: GenerationSpec, shard: Shard, resources: Resources) -> Pictures:
    """Draw and judge one shard. Deterministic on a given kind of machine, whatever else was drawn before.

    A judge or encoder that fails is told in `Pictures.unscored`: the pictures are there all the same.
    A GuardError blocks its picture and no other: a batch that fails is drawn again picture by picture. Every other error is
    the caller's, who tries the shard again later. So are a guard that was set up wrongly (`GUARD_SETUP_ERRORS`), and one that
    gives
    no picture of the shard at all, each time for the same reason: it cannot run, which must not count as perfect.
    """
    pipe = resources.pipeline(spec.model)
    here = resources.arithmetic(spec.model, pipe)
    if spec.precision and spec.precision != here:
        raise BenchError(
            f"this process draws on {here}, but the bench was planned for {spec.precision}, and the pictures would differ; use "
            "the same kind of machine, or plan again here with another --out."
        )
    guards = resources.guards(spec.model, spec.guards, spec.guards_digest)
    pictures: list[Tensor | None] = []
    intervened: list[bool] = []
    reasons: dict[int, str] = {}
    watch = Stopwatch(pipe.device)
    with watch, resources.precision(spec.model, pipe), torch.no_grad():
        for start in range(shard.start, shard.stop, spec.model.batch):
            rows = range(start, min(start + spec.model.batch, shard.stop))
            try:
                drawn, fired = _draw(pipe, guards, spec, rows)
            except GUARD_SETUP_ERRORS:
                raise
            except GuardError:
                drawn, fired = [], []
                for row in rows:
                    one, one_fired = _draw_or_block(pipe, guards, spec, row, reasons, row - shard.start)
                    drawn, fired = drawn + one, fired + one_fired
            pictures += drawn
            intervened += fired
    _check_runs(spec, shard, reasons)
    return _finished(spec, pictures, intervened, reasons, watch, resources.precision_name(spec.model, pipe), resources)


def _draw_or_block(
    pipe: Any, guards: Sequence[Any], spec: GenerationSpec, row: int, reasons: dict[int, str], place: int
) -> tuple[list[Tensor | None], list[bool]]:
    try:
        return _draw(pipe, guards, spec, range(row, row + 1))
    except GUARD_SETUP_ERRORS:
        raise
    except GuardError as error:
        reasons[place] = str(error)
        return [None], [True]


def _check_runs(spec: GenerationSpec, shard: Shard, reasons: Mapping[int, str]) -> None:
    """Raise if no picture of a shard was made, and all for one reason, numbers in it aside."""
    if len(shard) == 1 and spec.shard_size > 1 and len(spec) > 1:
        return  # the last picture of many: the other shards tell whether the guard runs
    if len(reasons) == len(shard) and len({re.sub(r"\d+", "0", reason) for reason in reasons.values()}) == 1:
        raise BenchError(
            f"the guard cannot run here: it gave none of {len(shard)} picture(s), each time for this reason: {reasons[0]}"
        )


def _draw(
    pipe: Any, guards: Sequence[Any], spec: GenerationSpec, rows: range
) -> tuple[list[Tensor | None], list[bool]]:
    """8-bit pictures (3, H, W) of some rows in one batch, and whether a guard intervened on each."""
    call = {
        **for_each_prompt(spec.model.call, len(rows)),
        "prompt": [spec.texts[row] for row in rows],
        # on the CPU, so that every device starts from the same noise
        "generator": [torch.Generator().manual_seed(spec.seeds[row]) for row in rows],
        "output_type": "pt",
    }
    fired = [False] * len(rows)
    if guards:
        with attach(pipe, list(guards)) as attached:
            output = pipe(**call)
            for decision in attached.decisions:
                fired[decision.image] |= decision.fired
    else:
        output = pipe(**call)
    images = getattr(output, "images", None)
    if not isinstance(images, Tensor) or images.ndim != 4 or len(images) != len(rows):
        raise BenchError(
            f"{type(pipe).__name__} did not return one picture a prompt; the bench draws text to image only."
        )
    if not bool(torch.isfinite(images).all()):
        if guards:
            raise GuardError("a picture holds NaN or infinity.")
        raise BenchError("the bare model drew NaN or infinity; check its dtype and scheduler.")
    eight_bit = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return list(eight_bit), fired


def _finished(
    spec: GenerationSpec,
    pictures: Sequence[Tensor | None],
    intervened: Sequence[bool],
    reasons: dict[int, str],
    watch: Stopwatch,
    precision: str,
    resources: Resources,
) -> Pictures:
    judged, unscored = score_with_all(spec.scorers, pictures, resources)
    return Pictures(
        judged=judged,
        unscored=unscored,
        blocked=torch.tensor([picture is None for picture in pictures]),
        intervened=torch.tensor(list(intervened)),
        checksums=[
            "" if picture is None else hashlib.sha256(picture.numpy().tobytes()).hexdigest() for picture in pictures
        ],
        images=[_png(picture) if spec.keep_images and picture is not None else None for picture in pictures],
        seconds=watch.seconds,
        peak_bytes=watch.peak_bytes,
        device=resources.device_name(spec.model),
        precision=precision,
        reasons=reasons,
    )


def _png(picture: Tensor) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
