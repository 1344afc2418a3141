"""bake(pipe, guards, out): weight guards merged into a plain diffusers pipeline folder, which loads without saferedir.

What `attach` keeps beside the weights, W + weight B A, is added up in float64 and rounded once to the dtype of W. The folder
holds what `save_pretrained` of diffusers writes, a card, and `saferedir_bake.json`: which guards, and the fingerprints of
before and after.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saferedir.attach import find_seam
from saferedir.errors import GuardError, OutputError, UnsupportedPipelineError
from saferedir.guards.base import Guard
from saferedir.guards.weights import WeightGuard
from saferedir.pipelines.families import family_of, unwrapped
from saferedir.pipelines.fingerprint import backbone_fingerprint, check_backbone
from saferedir.pipelines.lora import has_adapters
from saferedir.seam.requirements import check_one_denoiser
from saferedir.utils.files import (
    check_weights_place,
    refuse_finished,
    replacing_folder,
    take_over,
    write_json,
    write_text,
)
from saferedir.utils.locks import output_lock
from saferedir.utils.packaged import library_version

RECORD = "saferedir_bake.json"
CARD = "README.md"


def bake(
    pipe: Any,
    guards: Guard[Any] | Sequence[Guard[Any]],
    out: str | Path,
    *,
    overwrite: bool = False,
    force: bool = False,
) -> Path:
    """Merge weight guards into the weights of a pipeline and save it as a plain diffusers folder.

    The folder appears whole or not at all, and loads with diffusers alone. Its images are those of the pipeline with the guards
    attached up to rounding: there the two products are added at each call, here once.

    Args:
        pipe: a pipeline without guards and LoRAs, its weights in memory; it comes back as it was.
        guards: one guard or several that are LoRAs of the denoiser (duo, uce, esd); their weighted deltas add up.
        out: folder for the pipeline.
        overwrite: whether an earlier baked pipeline at `out` may be replaced.
        force: also merge a guard that was trained for another architecture, if all its layers are there.

    Returns:
        The folder.

    Raises:
        GuardError: a guard is none of weights, one of its layers is missing, or guards or LoRAs are on the pipeline.
        BackboneMismatchError: a guard was trained for another architecture, and `force` is false.
        OutputError: another run is writing to `out`, or something stands there that may not be replaced.

    Example:
        >>> import saferedir as sr
        >>> guard = sr.Guard.from_pretrained("pictoworld/star-duo")
        >>> folder = sr.bake(sr.load_pipeline("pictoworld"), guard, "runs/without-stars")
        >>> sorted(path.name for path in folder.iterdir())[:3]
        ['README.md', 'model_index.json', 'saferedir_bake.json']
    """
    chosen = check_weight_guards((guards,) if isinstance(guards, Guard) else tuple(guards))
    family = family_of(pipe)
    denoiser = unwrapped(getattr(pipe, family.denoiser))
    if find_seam(pipe, family) is not None:
        raise GuardError("guards are attached to this pipeline; detach them, then bake.")
    if any(isinstance(part, nn.Module) and has_adapters(part) for part in pipe.components.values()):
        raise GuardError("this pipeline has LoRAs loaded; unload them, or fuse and unload them, then bake.")
    if getattr(denoiser.config, "encoder_hid_dim_type", None) == "ip_image_proj":
        raise GuardError("this pipeline has an IP-Adapter loaded, which no plain folder keeps; unload it, then bake.")
    check_one_denoiser(pipe, family, chosen[0].method)
    before = backbone_fingerprint(pipe)
    for guard in chosen:
        if guard.config.component != family.denoiser:
            raise GuardError(
                f"guard {guard.method!r} edits a {guard.config.component}, and this {type(pipe).__name__} has a "
                f"{family.denoiser}."
            )
        guard.require_effect()
        if guard.config.backbone is not None and not force:
            differing = check_backbone(guard.config.backbone, before, guard.method)
            if any(name.startswith(family.denoiser) for name in differing):
                warnings.warn(
                    f"guard {guard.name!r} was trained on another {family.denoiser} than this pipeline's; its edit may not fit. "
                    "Check what the baked pipeline generates.",
                    stacklevel=2,
                )
    deltas = added_up(chosen)
    layers = layers_of(denoiser, deltas)
    with output_lock(Path(out), nested=True) as folder:
        check_place(folder, overwrite, "pass overwrite=True")
        with replacing_folder(folder) as fresh, merged(layers, deltas):
            pipe.save_pretrained(fresh, safe_serialization=True)
            _forget_places(fresh)
            _write_record(fresh, chosen, before, backbone_fingerprint(pipe))
            take_over(folder, fresh, without=_files_of(folder) | {path.name for path in fresh.iterdir()})
    return folder


def check_weight_guards(guards: Sequence[Any]) -> tuple[WeightGuard[Any], ...]:
    """The guards; raises GuardError unless all of them are LoRAs of a denoiser, with weights."""
    if not guards:
        raise GuardError("bake needs at least one guard; give those to merge.")
    for guard in guards:
        if not isinstance(guard, WeightGuard):
            name = getattr(guard, "method", type(guard).__name__)
            raise GuardError(
                f"guard {name!r} edits no weights, so there is nothing to merge; attach it to the pipeline instead."
            )
        guard.require_weights()
    return tuple(guards)


def check_place(out: Path, overwrite: bool, how: str = "give --force") -> None:
    """Raise OutputError unless a pipeline may be written to `out`: it is free, empty, or an earlier one that may go."""
    check_weights_place(out)
    if out.is_file():
        raise OutputError(f"{out} is a file; choose another --out.")
    if out.is_dir() and any(out.iterdir()):
        if not (out / RECORD).is_file():
            raise OutputError(f"{out} is not empty and holds no baked pipeline; choose another --out.")
        refuse_finished(out, True, overwrite, how)


def added_up(guards: Sequence[WeightGuard[Any]]) -> dict[str, Tensor]:
    """The sum of the guards' deltas by layer, in float64."""
    total: dict[str, Tensor] = {}
    for guard in guards:
        for name, delta in guard.deltas().items():
            total[name] = delta if name not in total else total[name] + delta
    return total


def layers_of(denoiser: nn.Module, deltas: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """The weights that the deltas belong to; raises GuardError where one is missing, of another shape, or not readable."""
    weights, modules = {}, dict(denoiser.named_modules())
    for name, delta in deltas.items():
        module = modules.get(name)
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter):
            raise GuardError(
                f"{type(denoiser).__name__} has no layer {name!r} for this guard; were its projections fused?"
            )
        if (
            weight.is_meta
            or not weight.is_floating_point()
            or weight.dtype.itemsize < 2
            or type(weight) is not nn.Parameter
        ):
            raise UnsupportedPipelineError(
                "the denoiser's weights are not in memory, or quantised, so nothing can be merged into them; load the pipeline "
                "in float32, float16 or bfloat16, without sequential offload."
            )
        if weight.shape != delta.shape:
            raise GuardError(
                f"this guard's {name} is {tuple(delta.shape)}, and {type(denoiser).__name__}'s is {tuple(weight.shape)}; "
                "use a guard that was trained for this backbone."
            )
        weights[name] = weight
    return weights


@contextmanager
def merged(layers: Mapping[str, nn.Parameter], deltas: Mapping[str, Tensor]) -> Iterator[None]:
    """The layers with their deltas added, for a while; afterwards the very values of before."""
    kept = {name: weight.detach().clone() for name, weight in layers.items()}
    try:
        with torch.no_grad():
            for name, weight in layers.items():
                weight.copy_((weight.double() + deltas[name].to(weight.device)).to(weight.dtype))
        yield
    finally:
        with torch.no_grad():
            for name, weight in layers.items():
                weight.copy_(kept[name])


def _write_record(folder: Path, guards: Sequence[WeightGuard[Any]], before: Any, after: Any) -> None:
    facts = [
        {
            "method": guard.method,
            "concept": guard.config.concept,
            "name": guard.name,
            "weight": guard.config.weight,
            "sha256": weights_sha256(guard),
        }
        for guard in guards
    ]
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    record = {
        "made_by": f"saferedir {library_version()}",
        "guards": facts,
        "backbone_before": before,
        "backbone_after": after,
        "files": [*files, CARD, RECORD],
    }
    write_json(folder / RECORD, record)
    write_text(folder / CARD, _card(facts, before, after))


def weights_sha256(guard: WeightGuard[Any]) -> str:
    """Checksum of a guard's tensors, names and shapes included."""
    digest = hashlib.sha256()
    for name, value in sorted(guard.tensors().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _card(guards: Sequence[Mapping[str, Any]], before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    rows = [f"| {g['concept']} | {g['method']} | {g['weight']:g} | {g['sha256'][:16]} |" for g in guards]
    names = ", ".join(str(g["concept"]) for g in guards)
    hashes = [f"| {module} | {before['weights'][module]} | {value} |" for module, value in after["weights"].items()]
    return "\n".join(
        [
            "---",
            "library_name: diffusers",
            "tags: [safety, unlearning, text-to-image]",
            "---",
            f"# A {before['architecture']['family']} pipeline that has unlearned {names}",
            "",
            "Made with `saferedir bake`: the guards below are merged into the denoiser's weights. It loads with diffusers alone, "
            "`DiffusionPipeline.from_pretrained(folder)`. The licence is that of the model it was made from.",
            "",
            "| concept | method | weight | sha256 of the guard's tensors |",
            "|---|---|---|---|",
            *rows,
            "",
            "Fingerprints of the weights (`saferedir_bake.json` has all of them):",
            "",
            "| part | before | after |",
            "|---|---|---|",
            *hashes,
            "",
            "## Limits",
            "Every image is affected, whatever the prompt. Guards that were calibrated on the model of before meet other weights "
            "here: saferedir warns, and `saferedir guards calibrate` sets their thresholds anew.",
            "",
        ]
    )


def _forget_places(folder: Path) -> None:
    """Take out where the parts were loaded from: paths of this machine mean nothing elsewhere."""
    for path in folder.rglob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict) and Path(str(record.get("_name_or_path", ""))).is_absolute():
            del record["_name_or_path"]
            write_json(path, record)


def _files_of(folder: Path) -> set[str]:
    """Top names of an earlier result's files, which do not come along."""
    if not (folder / RECORD).is_file():
        return set()
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return {str(name).split("/")[0] for name in record.get("files", [])}
