"""State dicts of the reference redirector: reading files, reading sizes off shapes, checking key by key.

The tree of names is that of the checkpoint published with SafeRedir (arXiv:2601.08623); see `reference.py` for the
network. Every complaint is one `StateDictError` that names the keys at fault.
"""

import pickle  # for the name of an error; nothing is unpickled  # nosec B403
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

MASK_HEADS = 4  # not recoverable from any shape


class StateDictError(ValueError):
    """A state dict is not one of a reference redirector; the message names the keys at fault."""


@dataclass(frozen=True)
class ReferenceSizes:
    """Every size of the reference network; the defaults are those of the published checkpoint (SD 1.x)."""

    prompt_dim: int = 768  # D
    seq_len: int = 77  # T
    latent_channels: int = 4  # C
    latent_widths: tuple[int, ...] = (64, 128, 256)
    latent_dim: int = 512
    sinusoid_dim: int = 320
    t_dim: int = 64
    cross_heads: int = 4
    classifier_hidden: int = 256
    token_hidden: int = 512
    rank: int = 16
    mask_hidden: int = 128
    alpha_hidden: int = 256
    token_specific: bool = False  # ours: token_proj also reads e_i and pos_i, see `widen_token_proj`

    @property
    def joint_dim(self) -> int:
        return self.latent_dim + self.t_dim


def read_state_dict(path: Path) -> Mapping[str, Any]:
    """Tensors of a `.safetensors` file, or of a `.pt`/`.pth` file unpickled with `weights_only=True`."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no redirector checkpoint at {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in (".pt", ".pth"):
            state = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(state, Mapping):
                return state
            raise StateDictError(f"{path} holds a {type(state).__name__}, expected a plain state dict of tensors.")
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StateDictError(f"{path} cannot be read as a state dict of plain tensors: {reason}") from error
    raise StateDictError(f"{path} has the suffix {path.suffix!r}, expected .safetensors, .pt or .pth.")


def check_values(state: Mapping[str, Any]) -> None:
    """Raise unless every name is a string and every value a tensor."""
    odd = [f"{key} ({type(value).__name__})" for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise StateDictError(f"The state dict holds values that are not tensors: {_listed(odd)}.")
    names = [repr(key) for key in state if not isinstance(key, str)]
    if names:
        raise StateDictError(f"The state dict has keys that are not strings: {_listed(names)}.")


def check_against(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise unless names, shapes and kinds of number agree with `expected` and every weight is finite."""
    faults = []
    if missing := [key for key in expected if key not in state]:
        faults.append(f"lacks {_listed(missing)}")
    if unexpected := [key for key in state if key not in expected]:
        faults.append(f"has unexpected {_listed(unexpected)}")
    common = [key for key in expected if key in state]
    if wrong := [key for key in common if state[key].shape != expected[key].shape]:
        shapes = (f"{key} {list(state[key].shape)} instead of {list(expected[key].shape)}" for key in wrong)
        faults.append(f"has wrong shapes: {_listed(shapes)}")
    if kinds := [k for k in common if state[k].is_floating_point() != expected[k].is_floating_point()]:
        faults.append("has wrong kinds of number: " + _listed(f"{key} {state[key].dtype}" for key in kinds))
    if infinite := [key for key in common if not torch.isfinite(state[key]).all()]:
        faults.append(f"has non-finite weights in {_listed(infinite)}")
    if faults:
        raise StateDictError(f"Not a reference redirector: the state dict {'; it '.join(faults)}.")


def infer_sizes(state: Mapping[str, Tensor]) -> ReferenceSizes:
    """Sizes as most of the tensors that show them have it; where two disagree, both are named."""
    blocks = _indices(state, r"latent_encoder\.(\d+)\.conv\.")
    heads = _indices(state, r"cross_attn\.heads\.(\d+)\.")
    if not blocks or not heads:
        lacking = "latent_encoder.0.conv.0.weight" if not blocks else "cross_attn.heads.0.query.weight"
        raise StateDictError(f"Not a reference redirector: the state dict lacks {lacking}.")

    def size(*witnesses: tuple[str, int]) -> int:
        return _size(state, witnesses)

    linear = f"latent_encoder.{len(blocks) + 2}"  # after global pooling and flatten
    prompt_dim = size(("gate_linear.weight", 1), ("pos_embed", 2), ("delta_head.up.weight", 0))
    sizes = ReferenceSizes(
        prompt_dim=prompt_dim,
        seq_len=size(("pos_embed", 1)),
        latent_channels=size(("latent_encoder.0.conv.0.weight", 1), ("latent_encoder.0.downsample.weight", 1)),
        latent_widths=tuple(
            size(*((f"latent_encoder.{i}.conv.{name}", 0) for name in ("0.bias", "1.weight", "3.bias", "4.bias")))
            for i in blocks
        ),
        latent_dim=size((f"{linear}.bias", 0), (f"{linear}.weight", 0)),
        sinusoid_dim=size(("t_encoder.0.weight", 1)),
        t_dim=size(("t_encoder.0.bias", 0), ("t_encoder.2.weight", 0), ("t_encoder.2.bias", 0)),
        cross_heads=len(heads),
        classifier_hidden=size(("classifier.0.bias", 0), ("classifier.0.weight", 0), ("classifier.3.weight", 1)),
        token_hidden=size(("token_proj.0.bias", 0), ("token_proj.0.weight", 0), ("token_proj.2.weight", 1)),
        rank=size(("delta_head.down.weight", 0), ("delta_head.up.weight", 1)),
        mask_hidden=size(*((f"mask_predictor.predictor.{name}", 0) for name in ("0.bias", "2.weight", "2.bias"))),
        alpha_hidden=size(
            ("alpha_predictor.net.0.bias", 0),
            ("alpha_predictor.net.0.weight", 0),
            ("alpha_predictor.net.2.weight", 1),
        ),
    )
    if sizes.sinusoid_dim % 2:
        raise StateDictError(f"t_encoder.0.weight reads {sizes.sinusoid_dim} sinusoids, expected an even number.")
    if prompt_dim % MASK_HEADS:
        raise StateDictError(
            f"gate_linear.weight is {prompt_dim} wide, which does not divide into the {MASK_HEADS} heads of"
            " mask_predictor.attn."
        )
    wide = _size(state, (("token_proj.0.weight", 1),)) == sizes.joint_dim + 3 * prompt_dim
    return ReferenceSizes(**{**vars(sizes), "token_specific": wide})


def _size(state: Mapping[str, Tensor], witnesses: Iterable[tuple[str, int]]) -> int:
    sizes = {key: state[key].shape[axis] for key, axis in witnesses if key in state and state[key].ndim > axis}
    votes = Counter(sizes.values()).most_common(2)
    if not votes:
        raise StateDictError(f"Not a reference redirector: the state dict lacks {_listed(k for k, _ in witnesses)}.")
    if len(votes) == 2 and votes[0][1] == votes[1][1]:
        raise StateDictError(f"Not a reference redirector: these shapes disagree: {_shapes(state, sizes)}.")
    if votes[0][0] == 0:
        raise StateDictError(f"Not a reference redirector: these tensors are empty: {_shapes(state, sizes)}.")
    return votes[0][0]


def _shapes(state: Mapping[str, Tensor], keys: Iterable[str]) -> str:
    return _listed(f"{key} {list(state[key].shape)}" for key in keys)


def _indices(state: Mapping[str, Tensor], pattern: str) -> range:
    indices = {match[1] for key in state if (match := re.match(pattern, key))}
    return range(len(indices))


def _listed(names: Iterable[str], limit: int = 6) -> str:
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
