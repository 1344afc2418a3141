"""Does a redirector fit what it is given? One sentence where it does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from saferedir.errors import GuardConfigError, GuardError
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.redirector_config import RedirectorConfig
from saferedir.guards.step import Step
from saferedir.pipelines.conditioning import PromptEmbeds

#: factor of cells within which latents count as of a size; SDXL's buckets lie within 1.07
AREA = 1.3


def require_fit(sizes: RedirectorConfig, step: Step, concept: str) -> None:
    """GuardError for a run whose embeddings or latents have other widths than the network was made for."""
    pooled = 0 if step.pooled is None else step.pooled.shape[-1]
    actual = {"prompt width": step.prompt_embeds.shape[-1], "latent channels": step.x_t.shape[1]}
    wanted = {"prompt width": sizes.prompt_dim, "latent channels": sizes.latent_channels}
    if sizes.pooled_dim:
        actual, wanted = {**actual, "pooled width": pooled}, {**wanted, "pooled width": sizes.pooled_dim}
    wrong = [f"{name} {actual[name]} where it knows {wanted[name]}" for name in wanted if actual[name] != wanted[name]]
    if wrong:
        raise GuardError(
            f"this SafeRedir guard for {concept!r} was made for another pipeline: it is given {', '.join(wrong)}; train one for "
            "this pipeline."
        )


def fits_prompts(sizes: RedirectorConfig, embeds: PromptEmbeds) -> bool:
    """Whether prompt embeddings have the widths that the network was made for."""
    pooled = 0 if embeds.pooled is None else embeds.pooled.shape[-1]
    return embeds.prompt.shape[-1] == sizes.prompt_dim and sizes.pooled_dim in (0, pooled)


def require_calibrated_size(config: SafeRedirConfig, step: Step) -> None:
    """GuardError for latents of a size that the image verdict was never calibrated at.

    A size counts as calibrated where it has as many cells as a recorded one, within a factor of `AREA`: the buckets of aspect
    ratios that a model generates at.
    """
    known = config.calibration.get("latent_sizes")
    if not known or not config.use_image or config.other_sizes == "allow":
        return
    height, width = step.x_t.shape[-2:]
    cells = [rows * columns for rows, columns in known]
    if min(cells) / AREA <= height * width <= max(cells) * AREA:
        return
    sizes = " and ".join(f"{rows} x {columns}" for rows, columns in known)
    raise GuardError(
        f"the image verdict of this SafeRedir guard for {config.concept!r} was calibrated on latents of {sizes}, and these are "
        f"of {height} x {width}, where it may miss the concept or take benign images for it; generate at a size of that area, "
        "calibrate the guard at this one (`saferedir guards calibrate`), or do without the verdict "
        "(guard.with_settings(use_image=False)) or without this check (other_sizes='allow')."
    )


def require_weights_fit(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """GuardConfigError for weights of a guard's file whose names or shapes are not the network's."""
    current = network.state_dict()
    wrong = sorted(set(current) ^ set(weights)) or sorted(n for n in current if current[n].shape != weights[n].shape)
    if wrong:
        raise GuardConfigError(
            f"model.safetensors does not fit the network in guard_config.json: {', '.join(wrong[:5])}; train the guard again."
        )


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], others: Iterable[Tensor] = ()) -> None:
    """Put weights that fit into the network, in its own types; GuardConfigError where they, or `others`, are not finite."""
    if not all(bool(torch.isfinite(t).all()) for t in (*weights.values(), *others) if t.is_floating_point()):
        raise GuardConfigError("model.safetensors holds values that are not finite; train the guard again.")
    current = network.state_dict()
    network.load_state_dict({n: t.to(current[n].dtype) for n, t in weights.items()})


def require_anchors_fit(sizes: RedirectorConfig, anchors: Mapping[str, Tensor | None]) -> None:
    """GuardConfigError for an anchor of other width: a prompt's embeddings (L, D), or pooled ones (P,), by tensor name."""
    for name, value in anchors.items():
        dims, width = (1, sizes.pooled_dim) if name.endswith("pooled_embeds") else (2, sizes.prompt_dim)
        if value is not None and (value.ndim != dims or not len(value) or value.shape[-1] != width):
            raise GuardConfigError(
                f"{name} has shape {tuple(value.shape)}, which does not fit a network for width {width}; train the guard again."
            )
