"""Caches and other speed-ups of a denoiser: how each is put on a tiny pipeline, set so that it skips much in few steps.

Used by tests/seam/test_caches.py and by the contract (tests/contract/speed_features.py), which measures each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import hooks
from tests.tiny_pipelines import PipelineCase

STEPS = (
    8  # so few that a cache which skips every other call is seen, so many that a redirection can begin in the middle
)
ALWAYS = (-1, 1001)  # a range of timesteps that holds them all
#: layers to predict, beyond those that diffusers names by itself
ATTENTION = [r".*blocks\.\d+\.attn\d?", r".*transformer_blocks\.\d+\.attn\d?"]


def time_of(pipe: Any) -> Callable[[], float]:
    """What a cache asks for the timestep it is in."""
    return lambda: float(pipe.scheduler.timesteps[pipe.scheduler.step_index or 0])


def first_block(pipe: Any, module: Any, case: PipelineCase) -> None:
    hooks.apply_first_block_cache(module, hooks.FirstBlockCacheConfig(threshold=0.3))


def pyramid(pipe: Any, module: Any, case: PipelineCase) -> None:
    ranges = dict.fromkeys(("spatial_attention_timestep_skip_range", "cross_attention_timestep_skip_range"), ALWAYS)
    skips = {"spatial_attention_block_skip_range": 2, "cross_attention_block_skip_range": 6}
    config = hooks.PyramidAttentionBroadcastConfig(current_timestep_callback=lambda: 500, **skips, **ranges)
    hooks.apply_pyramid_attention_broadcast(module, config)


def faster(pipe: Any, module: Any, case: PipelineCase) -> None:
    config = hooks.FasterCacheConfig(
        current_timestep_callback=time_of(pipe),
        tensor_format="BCFHW" if case.family == "wan" else "BCHW",
        is_guidance_distilled=case.family == "flux",
    )
    hooks.apply_faster_cache(module, config)


def mag(pipe: Any, module: Any, case: PipelineCase) -> None:
    config = hooks.MagCacheConfig(threshold=0.2, num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS)
    hooks.apply_mag_cache(module, config)


def taylor_seer(pipe: Any, module: Any, case: PipelineCase) -> None:
    config = hooks.TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=2, cache_identifiers=ATTENTION)
    hooks.apply_taylorseer_cache(module, config)


def sea(pipe: Any, module: Any, case: PipelineCase) -> None:
    hooks.apply_sea_cache(module, hooks.SeaCacheConfig(threshold=0.6))


def deep(pipe: Any, module: Any, case: PipelineCase) -> None:
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=0)
    helper.enable()


def merge_tokens(pipe: Any, module: Any, case: PipelineCase) -> None:
    import tomesd

    tomesd.apply_patch(pipe, ratio=0.5, use_rand=False, max_downsample=8)


Put = Callable[[Any, Any, PipelineCase], None]
#: name -> how it is put on one denoiser of a pipeline
CACHES: dict[str, Put] = {
    "FirstBlockCache": first_block,
    "PyramidAttentionBroadcast": pyramid,
    "FasterCache": faster,
    "MagCache": mag,
    "TaylorSeerCache": taylor_seer,
    "SeaCache": sea,
    "DeepCache": deep,
    "ToMe": merge_tokens,
}
#: those of packages that the project does not depend on
PACKAGES = {"DeepCache": "DeepCache", "ToMe": "tomesd"}


def put_on(name: str, pipe: Any, case: PipelineCase) -> None:
    """Put a cache on every denoiser of a pipeline; what diffusers cannot do it says in its own words."""
    for attribute in ("unet", "transformer", "transformer_2"):
        module = getattr(pipe, attribute, None)
        if module is not None:
            CACHES[name](pipe, module, case)
