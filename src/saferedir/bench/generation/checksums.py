"""Checksum of a whole pipeline: every weight, every setting, the tokenizers' words and rules.

`fingerprint` is the quick, forgiving relative that guards use; a bench needs this strict one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saferedir.errors import BenchError

#: in the configs of transformers' models, but no matter of the images (`dtype` is hashed with every tensor)
_BESIDE = ("transformers_version", "dtype", "torch_dtype")
#: of a tokenizer's own file: set anew by every call
_PER_CALL = ("truncation", "padding")


def model_digest(pipe: Any) -> str:
    """Sixteen hexadecimal digits over a pipeline's class and settings and, component by component in the order of their names,
    over class, config, and all bytes of all parameters and buffers, or a tokenizer's words and rules.

    The same on every device; another for another dtype. Packed (quantised) weights count as they are packed. Reads some 1 GB a
    second. Raises BenchError where weights are not in memory (meta tensors, as sequential offload leaves them).
    """
    digest = hashlib.sha256()
    components = dict(pipe.components)
    settings = {name: value for name, value in _plain(pipe.config).items() if name not in components}
    digest.update(_json([type(pipe).__name__, settings]).encode())
    for name, part in sorted(components.items()):
        part = getattr(part, "_orig_mod", part)  # compiled
        digest.update(_json([name, type(part).__name__, _settings(part)]).encode())
        if isinstance(part, nn.Module):
            _add_weights(digest, name, part)
        for tokenizer in (part, getattr(part, "tokenizer", None)):  # a processor has one inside
            if hasattr(tokenizer, "get_vocab"):
                digest.update(_words(tokenizer).encode())
    return digest.hexdigest()[:16]


def _add_weights(digest: Any, name: str, module: nn.Module) -> None:
    # state_dict has what packed layers keep outside their parameters; buffers that are not saved are only in named_buffers
    values = {**dict(module.named_buffers()), **module.state_dict()}
    for key, value in sorted(values.items()):
        for tensor in _tensors(value):
            if tensor.is_meta:
                raise BenchError(
                    f"the weights of {name!r} are not in memory ({key} is a meta tensor), so the bench cannot tell which model "
                    "this is; load it without offloading."
                )
            digest.update(_json([key, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(_bytes(tensor))


def _tensors(value: Any) -> Iterator[Tensor]:
    """The plain tensors that a value of a state dict is made of."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Tensor):
        value = value.detach()
        if hasattr(value, "__tensor_flatten__"):  # a packed subclass
            for inner in value.__tensor_flatten__()[0]:
                yield from _tensors(getattr(value, inner))
        elif value.is_quantized:
            yield value.int_repr()
            yield from (
                (value.q_per_channel_scales(), value.q_per_channel_zero_points())
                if value.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
                else (torch.tensor([value.q_scale(), value.q_zero_point()], dtype=torch.float64),)
            )
        else:
            yield value.as_subclass(Tensor)


def _bytes(value: Tensor) -> memoryview:
    """A tensor's values as they lie in memory, without a copy where they lie in one piece on the CPU."""
    flat = (value.to_dense() if value.layout != torch.strided else value).cpu().contiguous().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)


def _settings(part: Any) -> Any:
    """A component's config; None for one without."""
    config = getattr(part, "config", None)
    return None if config is None else _plain(config)


def _plain(config: Any) -> Any:
    """A config as plain data, without where it was loaded from and by which version of a library."""
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        return config
    return {str(k): _plain(v) for k, v in config.items() if not str(k).startswith("_") and k not in _BESIDE}


def _words(tokenizer: Any) -> str:
    """How a tokenizer turns text into numbers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: Any = None
    if backend is not None:
        rules = {key: value for key, value in json.loads(backend.to_str()).items() if key not in _PER_CALL}
    elif hasattr(tokenizer, "bpe_ranks"):
        rules = [list(pair) for pair, _ in sorted(tokenizer.bpe_ranks.items(), key=lambda item: item[1])]
    length = getattr(tokenizer, "model_max_length", None)
    side = [getattr(tokenizer, name, None) for name in ("padding_side", "truncation_side", "special_tokens_map")]
    return _json([tokenizer.get_vocab(), rules, length, side])


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
