"""load_pipeline(name): a diffusers pipeline from the package, a folder or the Hugging Face hub.

The pipeline comes as diffusers makes it, with no guard attached.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from saferedir.errors import GuardConfigError, GuardNotFoundError
from saferedir.utils.packaged import list_packaged_models, packaged_model_path
from saferedir.utils.places import hub_id, missing_folder

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: "model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors", "model-00001-of-00002.fp16.safetensors"
_VARIANT = re.compile(r"[^.]+\.([A-Za-z0-9_]+)(?:-\d{5}-of-\d{5})?\.safetensors")


def load_pipeline(
    name: str | Path,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    *,
    variant: str | None = None,
    revision: str | None = None,
) -> Any:
    """Load "pictoworld" (packaged), a local diffusers folder, or a hub id; move it to `device` if one is given.

    A path is never looked up on the hub, see `utils.places.hub_id`; "hf://owner/name" always is.

    Args:
        name: what to load.
        dtype: of the weights, a torch dtype or one of the words "float32", "float16" and "bfloat16"; default: float32.
        device: where to; default: where diffusers leaves it.
        variant: of the weight files, such as "fp16" for model.fp16.safetensors; default: the plain ones.
        revision: branch, tag or commit of a hub id.

    Raises:
        GuardConfigError: a dtype that is none.
        GuardNotFoundError: nothing of that name, or no safetensors weights of that variant in it.
    """
    from diffusers import DiffusionPipeline

    dtype = _dtype(dtype)

    packaged = packaged_model_path(str(name))
    source = packaged or Path(name).expanduser()
    known = ", ".join(list_packaged_models()) or "none in this installation"
    if packaged is None and not (source / "model_index.json").is_file():
        repository = hub_id(name)
        if source.exists() or repository is None:
            missing = missing_folder(name, "model_index.json", list_packaged_models())
            raise GuardNotFoundError(
                f"no pipeline is called {str(name)!r} ({missing}): give a packaged one ({known}), a diffusers folder with "
                "model_index.json, or a hub id, owner/name or hf://owner/name."
            )
        source = Path(repository)
    where = {key: value for key, value in (("variant", variant), ("revision", revision)) if value is not None}
    try:
        pipe = DiffusionPipeline.from_pretrained(str(source), dtype=dtype, use_safetensors=True, **where)
    except (OSError, ValueError) as error:
        if source.is_dir():
            raise GuardNotFoundError(_folder_sentence(source, variant, error)) from error
        raise GuardNotFoundError(
            f"could not load pipeline {str(name)!r} ({_reason(error)}); check the name, its variant (such as fp16, where that is "
            f"all it has) and the network, or use a packaged one ({known})."
        ) from error
    return pipe if device is None else pipe.to(device)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """The dtype of a word; explicit, because diffusers and transformers differ in what they do without one."""
    found = torch.float32 if dtype is None else dtype
    if isinstance(found, str):
        found = DTYPES.get(found.removeprefix("torch."), found)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise GuardConfigError(
            f"dtype is {dtype!r}; expected {', '.join(DTYPES)}, or a floating-point torch.dtype (the weight files' fp16 is "
            "variant='fp16')."
        )
    return found


def _folder_sentence(folder: Path, variant: str | None, error: Exception) -> str:
    """Why a folder that is there could not be loaded, as far as its weight files tell."""
    files = [path.name for path in folder.glob("*/*.safetensors")]
    variants = sorted({match[1] for file in files if (match := _VARIANT.fullmatch(file))})
    plain = [file for file in files if not _VARIANT.fullmatch(file)]
    start = f"could not load the pipeline in {folder}: "
    parts = sorted({path.parent for path in folder.glob("*/*.bin")})
    pickled = [part.name for part in parts if not any(part.glob("*.safetensors"))]
    if pickled:
        return (
            f"{start}the weights of {', '.join(pickled)} are .bin files, and saferedir loads safetensors only, which cannot run "
            "code; convert them once with diffusers (load it there, then save_pretrained)."
        )
    if variant is not None and variant not in variants:
        have = f"its variants are {', '.join(variants)}" if variants else "it has plain weights only; give no variant"
        return f"{start}it has no weights of the variant {variant!r}; {have}."
    if (
        variants
        and variant is None
        and (not plain or "safetensors" in str(error) or "no file named" in str(error).lower())
    ):
        return (
            f"{start}it has weights of the variant {' or '.join(variants)} where plain ones are missing; give "
            f"variant={variants[0]!r} (--variant {variants[0]} on the command line)."
        )
    return f"{start}{_reason(error)}; check that every part named in its model_index.json is there with its safetensors weights."


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
