"""Networks of published shapes with random weights, fast to make, and half-precision products on processors without them.

Imports diffusers, transformers, benchmarks.flops (published configurations). Which networks make which pipeline: models.py.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
import transformers
from benchmarks.flops import Part
from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import CLIPTokenizer, PreTrainedTokenizerFast, T5Tokenizer

from saferedir.pipelines.precision import has_fast_bf16

_PRODUCTS = {
    nn.functional.linear,
    nn.functional.conv1d,
    nn.functional.conv2d,
    nn.functional.conv3d,
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    Tensor.matmul,
    Tensor.__matmul__,
}
_HALVES = (torch.bfloat16, torch.float16)
_BLOCK = 1_000_003  # a prime, so that no two rows of a weight are alike


class WideProducts(TorchFunctionMode):
    """Products of half-precision tensors in float32, rounded to half again: what a processor with bf16 instructions does.

    One without them takes 10 to 60 times as long. Nothing but the speed changes: weights, states and outputs stay in half.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS:
            first = next(value for value in args if isinstance(value, Tensor))
            if first.dtype in _HALVES and first.device.type == "cpu":
                return func(*map(_wide, args), **{k: _wide(v) for k, v in kwargs.items()}).to(first.dtype)
        return func(*args, **kwargs)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALVES else value


@contextmanager
def affordable_halves() -> Iterator[None]:
    """`WideProducts` where the processor needs them."""
    if has_fast_bf16(torch.device("cpu")):
        yield
        return
    with WideProducts():
        yield


def make(
    part: Part, cut: Mapping[str, Any] | None = None, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Any:
    """A network of a published configuration, `cut` in depth, with random weights in eval mode."""
    config = {**part.config, **(cut or {})}

    def build() -> Any:
        if hasattr(diffusers, part.kind):
            return getattr(diffusers, part.kind)(**config)
        kind = getattr(transformers, part.kind)
        return kind(kind.config_class(**config))

    return with_quick_weights(build, dtype=dtype, seed=seed)


def with_quick_weights(build: Callable[[], Any], *, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Any:
    """A network with random weights that are made in seconds, in eval mode."""
    with _quick_weights(seed):
        model = build()
    return model.to(dtype).eval()


@contextmanager
def _quick_weights(seed: int) -> Iterator[None]:
    """Random initialisations that repeat one block of normal numbers; a billion of fresh ones would take a minute."""
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(seed))
    offset = 0

    def fill(tensor: Tensor, std: float) -> Tensor:
        nonlocal offset
        if tensor.is_meta:
            return tensor
        with torch.no_grad():
            flat = tensor.view(-1)
            start = 0
            while start < flat.numel():
                piece = block[offset : offset + flat.numel() - start]
                torch.mul(piece, std, out=flat[start : start + len(piece)])
                start, offset = start + len(piece), (offset + len(piece)) % _BLOCK
        return tensor

    def fan_in(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return fill(tensor, 1 / math.sqrt(max(1, tensor[0].numel())) if tensor.ndim > 1 else 0.02)

    def normal(tensor: Tensor, mean: float = 0.0, std: float = 1.0, *args: Any, **kwargs: Any) -> Tensor:
        return fill(tensor, std)

    def uniform(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return fill(tensor, 0.02)

    names = {
        **dict.fromkeys(("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_"), fan_in),
        **dict.fromkeys(("normal_", "trunc_normal_"), normal),
        "uniform_": uniform,
    }
    kept = {name: getattr(nn.init, name) for name in names}
    try:
        for name, function in names.items():
            setattr(nn.init, name, function)
        yield
    finally:
        for name, function in kept.items():
            setattr(nn.init, name, function)


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer of the published size, 49408, that spells every word in letters."""
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    unused = [f"unused{n}</w>" for n in range(49406 - len(letters))]
    pieces = [*letters, *unused, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[], model_max_length=77)


def piece_tokenizer() -> T5Tokenizer:
    """A sentence-piece tokenizer of the 26 letters, for T5, UMT5 and Gemma; the encoder's embedding has its own, true size."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(
        vocab=pieces + [(letter, -3.0) for letter in string.ascii_lowercase], extra_ids=0, model_max_length=2048
    )


#: how Qwen's tokenizers cut a text into words, before they look these up
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: those from 151643 on, in their published order
QWEN_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def chat_tokenizer(
    *instructions: str,
    size: int = 151643,
    special: tuple[str, ...] = QWEN_SPECIAL,
    side: str = "right",
    begin: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    """A tokenizer of conversations: a word of the pipeline's own `instructions` is one token, others are spelt in bytes.

    `size`: of the vocabulary before the `special` tokens, as published; the first of them pads. `begin`: those of them that
    every text begins with.
    """
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    known = {
        piece
        for text in (*instructions, "\n", "user\n", "system\n", "assistant\n")
        for piece, _ in words.pre_tokenize_str(text)
    }
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *sorted(known)]
    pieces = list(dict.fromkeys(pieces))
    vocabulary = {piece: n for n, piece in enumerate([*pieces, *(f"unused{n}" for n in range(size - len(pieces)))])}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = words
    tokenizer.add_special_tokens(list(special))
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{' '.join(begin)} $A", special_tokens=[(token, tokenizer.token_to_id(token)) for token in begin]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], padding_side=side, model_max_length=4096
    )
    made.chat_template = CHAT_TEMPLATE
    return made
