"""load_pipeline(name): a diffusers pipeline from the package, a folder or the Hugging Face hub.

The pipeline comes as diffusers makes it, with no guard attached.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from saferedir.errors import GuardConfigError, GuardNotFoundError, UnsupportedPipelineError
from saferedir.pipelines.schedules import SCHEDULER_KINDS, prediction_type, scheduler_kind
from saferedir.utils.names import unknown_name_message
from saferedir.utils.packaged import list_packaged_models, packaged_lora_path, packaged_model_path
from saferedir.utils.places import hub_id, missing_folder

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: suffixes by which a model in one file is known; those that can run code are refused
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
#: how diffusers calls the kind of a checkpoint (its beginning) -> pipeline
SINGLE_FILE_PIPELINES = {
    "xl_base": "StableDiffusionXLPipeline",
    "xl_refiner": "StableDiffusionXLImg2ImgPipeline",
    "xl_inpaint": "StableDiffusionXLInpaintPipeline",
    "playground": "StableDiffusionXLPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux-dev": "FluxPipeline",
    "flux-schnell": "FluxPipeline",
    "auraflow": "AuraFlowPipeline",
    "lumina2": "Lumina2Pipeline",
    "sana": "SanaPipeline",
    "wan-t2v": "WanPipeline",
}
#: "model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors", "model-00001-of-00002.fp16.safetensors"
_VARIANT = re.compile(r"[^.]+\.([A-Za-z0-9_]+)(?:-\d{5}-of-\d{5})?\.safetensors")


def load_pipeline(
    name: str | Path,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    *,
    variant: str | None = None,
    revision: str | None = None,
    config: str | Path | None = None,
    loras: Sequence[tuple[str, float]] = (),
    scheduler: str | None = None,
) -> Any:
    """Load "pictoworld" (packaged), a diffusers folder, a checkpoint in one file, or a hub id; move it to a device.

    A path is never looked up on the hub, see `utils.places.hub_id`; "hf://owner/name" always is.

    Args:
        name: what to load.
        dtype: of the weights, a torch dtype or one of the words "float32", "float16" and "bfloat16"; default: float32.
        device: where to; default: where diffusers leaves it.
        variant: of the weight files, such as "fp16" for model.fp16.safetensors; default: the plain ones.
        revision: branch, tag or commit of a hub id.
        config: of a checkpoint in one .safetensors file, the diffusers folder or hub id in which its parts are described;
            default: that of the model it is recognised as, from the hub.
        loras: (a packaged name such as "pictoworld-few-steps", a .safetensors file, a folder or a hub id, scale) of LoRAs to
            load into the pipeline, in order.
        scheduler: name of the diffusers class to sample with, such as "LCMScheduler", made from the model's own settings;
            default: the model's own.

    Returns:
        The diffusers pipeline, of the class that its own files name.

    Raises:
        GuardConfigError: a dtype or scheduler that is none, a scheduler for another kind of model (flow matching, EDM, …), or
            `config` for a model that is not one file.
        GuardNotFoundError: nothing of that name, or no safetensors weights of that variant in it.

    Example:
        >>> import saferedir as sr
        >>> type(sr.load_pipeline("pictoworld")).__name__
        'StableDiffusionPipeline'
    """
    from diffusers import DiffusionPipeline

    dtype = _dtype(dtype)
    sampler = None if scheduler is None else _scheduler_class(scheduler)
    file = Path(name).expanduser()
    if file.suffix.lower() in SINGLE_FILES:
        given = [label for label, value in (("variant", variant), ("revision", revision)) if value is not None]
        if given:
            raise GuardConfigError(
                f"{given[0]} is for a folder or a hub id, and {file.name} is one file; leave it out."
            )
        pipe = _from_single_file(file, dtype, config)
        return _finished(pipe, loras, sampler, device)
    if config is not None:
        raise GuardConfigError(
            f"config is for a checkpoint in one .safetensors file, and {str(name)!r} is none; leave it out."
        )

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
    return _finished(pipe, loras, sampler, device)


def _finished(pipe: Any, loras: Sequence[tuple[str, float]], scheduler: Any, device: str | torch.device | None) -> Any:
    """The pipeline with its LoRAs and that scheduler, on its device."""
    if scheduler is not None:
        pipe.scheduler = _scheduler(scheduler, pipe)
    if loras:
        _load_loras(pipe, loras)
    return pipe if device is None else pipe.to(device)


def _scheduler_class(name: str) -> Any:
    """The diffusers class with that name; found before the model is loaded."""
    import diffusers

    if name not in SCHEDULER_KINDS:
        raise GuardConfigError(unknown_name_message("scheduler", name, SCHEDULER_KINDS))
    return getattr(diffusers, name)


def _scheduler(made: Any, pipe: Any) -> Any:
    """A scheduler of that class with the settings that it shares with the pipeline's own."""
    try:
        scheduler = made.from_config(pipe.scheduler.config)
        fits, other = (_samples_by(each) for each in (pipe.scheduler, scheduler))
    except (TypeError, ValueError, KeyError, ImportError, UnsupportedPipelineError) as error:
        raise GuardConfigError(
            f"{made.__name__} cannot take the place of this model's scheduler ({_reason(error)})."
        ) from error
    if fits != other:
        raise GuardConfigError(
            f"{made.__name__} does not fit this {type(pipe).__name__}: it samples by {other}, and the model was made for {fits}; "
            "choose another."
        )
    return scheduler


def _samples_by(scheduler: Any) -> str:
    """In the words of a sentence, what a scheduler takes predictions and noise levels for."""
    words = {"flow": "flow matching", "edm": "EDM's noise levels", "trig": "TrigFlow"}
    kind = "flow" if prediction_type(scheduler) == "flow" else scheduler_kind(scheduler)
    return words.get(kind, "noise prediction")


def _load_loras(pipe: Any, loras: Sequence[tuple[str, float]]) -> None:
    """Load LoRAs under names of their own ("lora-1", …) and have all of them act, each with its scale."""
    names = [f"lora-{number}" for number in range(1, len(loras) + 1)]
    if not hasattr(pipe, "load_lora_weights"):
        raise GuardConfigError(f"a {type(pipe).__name__} takes no LoRAs; leave them out.")
    for adapter, (source, _) in zip(names, loras, strict=True):
        path = packaged_lora_path(source) or Path(source).expanduser()
        if not path.exists() and hub_id(source) is None:
            raise GuardNotFoundError(
                f"no LoRA is at {source!r}; give a .safetensors file, a folder or a hub id, owner/name."
            )
        if path.is_file() and path.suffix != ".safetensors":
            raise GuardConfigError(
                f"{path} is no .safetensors file, and saferedir loads nothing else, which cannot run code."
            )
        try:
            if path.is_file():
                pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=adapter)
            else:
                repository = str(path) if path.exists() else hub_id(source)
                pipe.load_lora_weights(repository, adapter_name=adapter, use_safetensors=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise GuardNotFoundError(
                f"could not load the LoRA {source!r} into this model ({_reason(error)})."
            ) from error
    pipe.set_adapters(names, adapter_weights=[scale for _, scale in loras])


def _from_single_file(file: Path, dtype: torch.dtype, config: str | Path | None) -> Any:
    """The pipeline of a checkpoint in one file, by the kind of model that diffusers recognises in it."""
    import diffusers
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type, load_single_file_checkpoint

    if not file.is_file():
        raise GuardNotFoundError(f"no checkpoint is at {file}; check the path.")
    if file.suffix.lower() != ".safetensors":
        raise GuardConfigError(
            f"{file} is a {file.suffix} file, which can run code when it is loaded; convert it once to safetensors elsewhere."
        )
    try:
        kind = infer_diffusers_model_type(load_single_file_checkpoint(str(file)))
    except (OSError, ValueError, RuntimeError) as error:
        raise GuardNotFoundError(f"could not read the checkpoint {file} ({_reason(error)}); is it whole?") from error
    pipeline = next((name for start, name in SINGLE_FILE_PIPELINES.items() if kind.startswith(start)), None)
    if pipeline is None:
        raise GuardConfigError(
            f"{file} looks like a model of the kind {kind!r}, which saferedir does not load from one file; convert it to a "
            "diffusers folder and give that."
        )
    more = {}
    if config is not None:
        folder = Path(config).expanduser()
        unsafe = sorted(path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if unsafe:
            raise GuardConfigError(
                f"{folder} holds {unsafe[0].name}, which can run code when it is loaded; give a folder with safetensors only."
            )
        more = {"config": str(folder) if folder.exists() else hub_id(config) or str(config)}
    try:
        return getattr(diffusers, pipeline).from_single_file(str(file), torch_dtype=dtype, **more)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise GuardNotFoundError(
            f"could not load {file} as a {pipeline} ({_reason(error)}); without a network give config (--model-config), the "
            "diffusers folder in which its parts are described."
        ) from error


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """The dtype of a word; explicit, because diffusers and transformers differ in what they do without one."""
    chosen = torch.float32 if dtype is None else dtype
    if isinstance(chosen, str):
        chosen = DTYPES.get(chosen.removeprefix("torch."), chosen)
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise GuardConfigError(
            f"dtype is {dtype!r}; expected {', '.join(DTYPES)}, or a floating-point torch.dtype (the weight files' fp16 is "
            "variant='fp16')."
        )
    return chosen


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
