"""load_pipeline(name): a diffusers pipeline from the package, a folder or the Hugging Face hub.

Imports diffusers (on first use) and `packaged`. The pipeline comes as diffusers makes it, with no guard
attached.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from saferedir.errors import GuardNotFoundError
from saferedir.packaged import list_packaged_models, packaged_model_path
from saferedir.utils.places import hub_id, missing_folder


def load_pipeline(name: str | Path, dtype: torch.dtype | None = None, device: str | torch.device | None = None) -> Any:
    """Load "pictoworld" (packaged), a local diffusers folder, or a hub id; move it to `device` if one is
    given. A path is never looked up on the hub, see `utils.places.hub_id`; "hf://owner/name" always is.
    """
    from diffusers import DiffusionPipeline

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
    # an explicit dtype: diffusers and transformers differ in what they do without one
    dtype = dtype or torch.float32
    try:
        pipe = DiffusionPipeline.from_pretrained(str(source), dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise GuardNotFoundError(
            f"could not load pipeline {str(name)!r} ({type(error).__name__}: {str(error).splitlines()[0]}); "
            f"check the name and the network, or use a packaged one ({known})."
        ) from error
    return pipe if device is None else pipe.to(device)
