"""Models of `transformers` for judges: from a local folder, or from the hub where that is allowed; never torchvision.

Used by clip.py and classifier.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from saferedir.errors import JudgeError
from saferedir.judges.images import to_pil
from saferedir.utils.places import hub_id, missing_folder


def load_part(loader: Callable[..., Any], model: str, what: str, *, allow_download: bool, **options: Any) -> Any:
    """`loader(model, …)`, from files here unless `allow_download`; a failure is one sentence.

    Code that comes with a model is never run, and weights are safetensors only.
    """
    folder = Path(model).expanduser()
    try:
        name = str(folder) if folder.is_dir() else hub_id(model) or model
        if not folder.is_dir() and "/" in model and hub_id(model) is None:
            raise OSError(missing_folder(model, "config.json"))  # a path is never looked up on the hub
        return loader(name, local_files_only=not allow_download, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        advice = "" if allow_download else ", or set allow_download to fetch it from the hub"
        raise JudgeError(f"{what} cannot be loaded from {model!r}; give a folder of one{advice} ({reason}).") from error


def image_processor(model: str, *, allow_download: bool) -> Any:
    """The model's own preprocessing on the PIL backend: the one that needs no torchvision, and the one papers used."""
    from transformers import AutoImageProcessor

    return load_part(
        AutoImageProcessor.from_pretrained,
        model,
        "the preprocessing of an image model",
        allow_download=allow_download,
        backend="pil",
    )


def pixel_values(processor: Any, images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] to the model's input, by way of 8-bit PIL images, as from files."""
    if not len(images):
        raise JudgeError("there is no image to judge.")
    values: Tensor = processor(images=to_pil(images), return_tensors="pt")["pixel_values"]
    return values


_FIXES = ("size", "crop_size", "crop_pct", "resample", "rescale_factor", "image_mean", "image_std")


#: option of a preprocessing -> the switch without which it does nothing
_SWITCH = {"size": "do_resize", "crop_pct": "do_resize", "resample": "do_resize", "crop_size": "do_center_crop"} | {
    "rescale_factor": "do_rescale",
    "image_mean": "do_normalize",
    "image_std": "do_normalize",
}


def preprocessing_facts(processor: Any) -> dict[str, Any]:
    """For a judge's facts: "resize" in words ("height 224, width 224, bicubic"), and a checksum of all that changes pixels."""
    values = {name: value for name, value in processor.to_dict().items() if name in _FIXES or name.startswith("do_")}
    used = {name: value for name, value in values.items() if value and values.get(_SWITCH.get(name, name), True)}
    size = dict(used.get("size") or {})
    words = [f"{name} {size[name]}" for name in sorted(size) if size[name] is not None]
    words.append(Image.Resampling(int(used.get("resample") or 0)).name.lower())
    if "crop_size" in used:
        words.append("cropped at the centre")
    text = json.dumps(used, sort_keys=True, default=str)
    return {"resize": ", ".join(words), "preprocessing": hashlib.sha256(text.encode()).hexdigest()[:16]}


def model_facts(model: str, weights: str, processor: Any, **options: Any) -> dict[str, Any]:
    """A judge's facts, from its model's id, the checksum of its weights and its preprocessing; `options`: settings of its own."""
    return {
        "id": model,
        "weights": weights,
        "channels": "RGB",
        **preprocessing_facts(processor),
        **options,
        "floor": 0.0,
        "version": transformers_version(),
    }


def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, batch: int) -> Tensor:
    """(N, …) of `function`, at most `batch` images at a time, without gradients, on the CPU."""
    with torch.inference_mode():
        return torch.cat([function(chunk).float().cpu() for chunk in images.split(batch)])


def one_text_each(texts: Sequence[str] | str, what: str, least: int) -> tuple[str, ...]:
    """Distinct texts; a single string is split at semicolons, for the command line."""
    stripped = tuple(text.strip() for text in (texts.split(";") if isinstance(texts, str) else texts))
    if len(stripped) < least or len(set(stripped)) != len(stripped) or not all(stripped):
        raise JudgeError(f"{what} needs {least} or more distinct texts; found {len(stripped)}.")
    return stripped


def transformers_version() -> str:
    """For a judge's facts."""
    return f"transformers {metadata.version('transformers')}"
