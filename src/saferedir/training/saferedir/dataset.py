"""Training data of a SafeRedir guard: prompt pairs, their embeddings, and the model's states while it generates their images.

Used by train.py only. Training as in docs/methods/saferedir.md: split by prompt pair, embeddings once per prompt, mask
target (9).
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from saferedir.attach import attach
from saferedir.errors import GuardConfigError, UnsupportedPipelineError
from saferedir.guards.base import Guard, GuardConfig, Run, Step
from saferedir.guards.saferedir.layers import real_tokens
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.encoding import encode_prompts
from saferedir.pipelines.families import family_of
from saferedir.pipelines.guiders import guided_call
from saferedir.pipelines.latents import latent_shape
from saferedir.pipelines.precision import fast_precision
from saferedir.pipelines.safety_checker import without_safety_checker
from saferedir.utils.calls import for_each_prompt
from saferedir.utils.files import save_tensors, write_text
from saferedir.utils.names import unknown_name_message
from saferedir.utils.text_files import is_encodable, iterate_lines, parse_json

ENCODED_AT_ONCE = 64  # prompts; the accelerator never holds the embeddings of more
IMAGES_AT_ONCE = 50  # of roll-outs, where they are small
CELLS_AT_ONCE = 2**16  # latent cells of all images of a batch; fifty of 1024 pixels fit no accelerator
VIEWS = ("x0", "x0_uncond", "x_t")  # x0 is what the guard reads; the others are for ablations
MOVED = 0.05  # relative distance above which a token belongs to the mask target
OWN_ARGUMENTS = {
    "prompt",
    "prompt_2",
    "prompt_3",
    "num_inference_steps",
    "guidance_scale",
    "generator",
    "latents",
    "output_type",
    "return_dict",
}


@dataclass(frozen=True)
class Pair:
    """A prompt that asks for the concept and the same wish without it; `unsafe` is None for a benign line."""

    unsafe: str | None
    safe: str


def read_pairs(path: Path) -> list[Pair]:
    """Pairs from a JSON-lines file: {"unsafe": ..., "safe": ...} or {"safe": ...} for a benign prompt.

    Raises:
        GuardConfigError: for a missing or empty file, and with the line number for a malformed line.
    """
    if not path.is_file():
        raise GuardConfigError(
            f"There is no pairs file at {path}; give a JSON-lines file with unsafe and safe prompts."
        )
    pairs = []
    for number, line in iterate_lines(path, error=GuardConfigError):
        if line.strip():
            pairs.append(_parse_pair(line, f"{path}, line {number}"))
    if not any(pair.unsafe for pair in pairs):
        raise GuardConfigError(f"{path} holds no pair with an unsafe prompt; a guard needs at least 10 of them.")
    return pairs


def _parse_pair(line: str, where: str) -> Pair:
    record = parse_json(line, where, error=GuardConfigError)
    if not isinstance(record, dict) or not set(record) <= {"unsafe", "safe"}:
        raise GuardConfigError(f'{where}: expected an object with the keys "unsafe" and "safe" only.')
    unsafe, safe = record.get("unsafe"), record.get("safe")
    for name, value in (("safe", safe), ("unsafe", unsafe)):
        if value is None and name == "unsafe":
            continue
        if not isinstance(value, str) or not value.strip():
            raise GuardConfigError(f'{where}: "{name}" must be a non-empty text, not {value!r}.')
    if unsafe == safe:
        raise GuardConfigError(f"{where}: the unsafe and the safe prompt are the same.")
    return Pair(unsafe, str(safe))


def write_pairs(pairs: Sequence[Pair], path: Path) -> None:
    """Inverse of `read_pairs`; the file appears whole or not at all.

    Raises:
        GuardConfigError: a prompt that holds half of a surrogate pair, which neither a file nor a tokenizer takes.
    """
    broken = next((n for n, p in enumerate(pairs, 1) if not is_encodable(f"{p.unsafe}{p.safe}")), None)
    if broken is not None:
        raise GuardConfigError(
            f"pair {broken} holds half of a surrogate pair, which is no character; nothing was written."
        )
    records = [{"safe": p.safe} if p.unsafe is None else {"unsafe": p.unsafe, "safe": p.safe} for p in pairs]
    write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


def hash_pairs(rows: Sequence[Pair]) -> str:
    """A short digest of the pairs, to recognise the same file again."""
    return hashlib.sha256(json.dumps([[p.unsafe, p.safe] for p in rows]).encode()).hexdigest()[:16]


def split_pairs(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, held out) by checksum of the safe prompt, so that all seeds and steps of a pair fall on one side."""

    def position(pair: Pair) -> float:
        digest = hashlib.sha256(f"{seed}/{pair.safe.lower()}".encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32

    held_out = [pair for pair in pairs if position(pair) < share]
    return [pair for pair in pairs if position(pair) >= share], held_out


@torch.no_grad()
def encode_on_cpu(pipe: Any, prompts: Sequence[str], call: Mapping[str, Any] | None = None) -> PromptEmbeds:
    """Conditioning of N prompts on the CPU, in the pipeline's own dtype (long prompts of big encoders fill memory).

    Zero tokens count as padding, so the mask may be there although the family has none; see `real_tokens`.
    """
    # those that are as long as the longest of their batch must all be encoded to one length
    at_once = max(1, len(prompts)) if family_of(pipe).prompt_lengths == "longest" else ENCODED_AT_ONCE
    parts = (
        encode_prompts(pipe, prompts[start : start + at_once], call).map(lambda part: part.cpu())
        for start in range(0, len(prompts), at_once)
    )
    embeds = _gathered(parts, len(prompts))
    real = real_tokens(embeds.prompt, embeds.mask)
    return embeds if embeds.mask is None and bool(real.all()) else embeds._replace(mask=real)


def _with_room(some: PromptEmbeds, count: int) -> PromptEmbeds:
    """The rows of `some`, and room for more below them, `count` rows in all."""

    def widened(value: Tensor) -> Tensor:
        padded = value.new_empty(count, *value.shape[1:])
        padded[: len(value)] = value
        return padded

    return some.map(widened)


def _gathered(parts: Iterable[PromptEmbeds], count: int) -> PromptEmbeds:
    """All rows of `parts`, `count` of them, in one piece; where lengths agree without holding them twice (they fill memory)."""
    held: PromptEmbeds | None = None
    start = 0
    for part in parts:
        end = start + len(part.prompt)
        if held is None:
            if end == count:
                return part
            held = _with_room(part, count)
        elif held.prompt.shape[1] != part.prompt.shape[1]:  # longer or shorter, under a mask
            held = _with_room(held.rows(slice(start)).cat(part), count)
        else:
            for kept, value in zip(held, part, strict=True):
                if kept is not None and value is not None:
                    kept[start:end] = value
        start = end
    if held is None:
        raise ValueError("there is no prompt to encode.")
    return held


def moved_tokens(unsafe: Tensor, safe: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mask target m* (N, L): tokens whose embedding differs between the two prompts, wherever the concept leaked.

    Padding (where `mask` of the unsafe prompt is False) and zeros (Wan's padding: a shift is in proportion to a token's
    length) cannot be moved, so they are no target. What a safe prompt has beyond the unsafe one's end is therefore lost;
    give `safe` as `without_padding` makes it, so that a longer unsafe prompt ends as the safe one does.
    """
    lengths: Tensor = torch.linalg.vector_norm(torch.stack([unsafe - safe, safe]), dim=-1)
    moved = lengths[0] / lengths[1].clamp(min=1e-6) > MOVED
    return (moved & real_tokens(unsafe, mask)).float()


class Recorder(Guard[GuardConfig]):
    """A guard that changes nothing and keeps what a classifier could read: x0, or another of `VIEWS`."""

    method = "recorder"

    def __init__(self, view: str) -> None:
        super().__init__(GuardConfig(concept="recording"))
        self.view = view
        self.frames: list[Tensor] = []
        self.times: list[Tensor] = []

    def start(self, run: Run) -> None:
        self.frames, self.times = [], []

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        views = {"x0": x0, "x_t": step.x_t, "x0_uncond": x0 if step.x0_uncond is None else step.x0_uncond}
        self.frames.append(views[self.view].detach().cpu().half())
        self.times.append(step.t[0].detach().cpu())
        return x0


@dataclass(frozen=True)
class Rollouts:
    """What was recorded for N prompts at S steps: frames (N, S, C, h, w), or (N, S, C, F, h, w) of videos, in float16, and
    times t (S,).
    """

    frames: Tensor
    t: Tensor


def check_call(call: Mapping[str, Any]) -> None:
    """Refuse arguments of the pipeline's call that `roll_out` sets itself, and those that a plan cannot be compared by."""
    if taken := sorted(OWN_ARGUMENTS & call.keys()):
        raise GuardConfigError(f"TrainConfig.call holds {', '.join(taken)}, which training sets itself; leave it out.")
    try:
        json.dumps(dict(call))
    except TypeError as error:
        raise GuardConfigError(f"TrainConfig.call holds more than plain numbers and texts: {error}.") from error


def require_call_arguments(pipe: Any, call: Mapping[str, Any]) -> None:
    """GuardConfigError for an argument that the pipeline's call does not take: a mistyped one would train at the default.

    And for a pipeline whose text encoder reads an image beside the prompt: there are prompts alone to train on.
    """
    if family_of(pipe).encoder_reads_image:
        raise GuardConfigError(
            f"the text encoder of {type(pipe).__name__} reads an input image with each prompt, and a guard is trained on prompts "
            "alone, so none can be trained on this pipeline."
        )
    parameters = inspect.signature(type(pipe).__call__).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD][1:]
    for name in call:
        if name not in known:
            raise GuardConfigError(unknown_name_message(f"argument of {type(pipe).__name__}'s call", name, known))


def images_at_once(pipe: Any, call: Mapping[str, Any] | None = None) -> int:
    """How many images, or videos, to generate together: 50 at most, and as many as `CELLS_AT_ONCE` latent cells make.

    That is 16 images of 512 pixels, 4 of 1024, one video; 50 where the pipeline does not say its size.
    """
    try:
        _, frames, height, width = latent_shape(pipe, call)
    except UnsupportedPipelineError:
        return IMAGES_AT_ONCE
    return max(1, min(IMAGES_AT_ONCE, CELLS_AT_ONCE // max(1, frames * height * width)))


def roll_out(
    pipe: Any,
    prompts: Sequence[str],
    *,
    steps: int,
    guidance_scale: float,
    seed: int,
    batch: int | None = None,
    call: Mapping[str, Any] | None = None,
    view: str = "x0",
    cache: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Rollouts:
    """Generate an image for every prompt and record one of `VIEWS` at every step; image i starts from noise of seed `seed + i`.

    `call` holds more arguments of the pipeline's call (height, width, num_frames, ...); one negative prompt there serves
    every image. `batch` images at once, default `images_at_once`. Finished batches are kept in the folder `cache`, so that an
    interrupted run goes on. All frames are held in main memory once: 2 bytes a value.
    """
    recorder = Recorder(view)
    frames, t = torch.empty(0), torch.empty(0)
    batch = batch or images_at_once(pipe, call)
    precision = fast_precision(pipe.device) if pipe.dtype == torch.float32 else nullcontext()
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(prompts), batch):
        chunk = list(prompts[start : start + batch])
        facts = [chunk, steps, guidance_scale, seed + start, view, *([dict(call)] if call else [])]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        path = None if cache is None else cache / f"rollout-{key}.safetensors"
        if path is not None and path.exists():
            part = load_file(path)
        else:
            generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(chunk))]
            asked = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "generator": generators}
            asked |= {"prompt": chunk, "output_type": "latent", **for_each_prompt(call or {}, len(chunk))}
            with (
                without_safety_checker(pipe),
                attach(pipe, recorder),
                precision,
                torch.no_grad(),
                guided_call(pipe, asked) as arguments,
            ):
                pipe(**arguments)
            part = {"frames": torch.stack(recorder.frames, dim=1), "t": torch.stack(recorder.times)}
            if path is not None:
                save_tensors(part, path)
        if start == 0:
            frames, t = part["frames"].new_empty(len(prompts), *part["frames"].shape[1:]), part["t"]
        frames[start : start + len(chunk)] = part["frames"]
        if on_progress is not None:
            on_progress(len(chunk))
    return Rollouts(frames, t)
