"""The rows of the contract: every feature, what it promises, and where its check lives.

`FEATURES` is what tests/contract/test_contract.py runs and tests/contract/table.py prints.
"""

from __future__ import annotations

from tests.contract import guard_features as guards
from tests.contract import pipeline_features as pipelines
from tests.contract import speed_features as speed
from tests.contract.feature import Feature

SD = "stable-diffusion"
#: what diffusers can keep from one call of a denoiser to the next
_CACHES = (
    ("FirstBlockCache", "skips the blocks after the first"),
    ("PyramidAttentionBroadcast", "keeps the output of attention for some steps"),
    ("FasterCache", "predicts attention and the unconditional rows"),
    ("MagCache", "skips all blocks, by magnitudes known beforehand"),
    ("TaylorSeerCache", "predicts layers by their derivatives"),
    ("SeaCache", "skips all blocks, by the spectrum of the latents"),
)

_ROWS = (
    Feature(
        "read-only", "a guard that only watches changes no bit", guards.check_read_only, "script", "all", ("watcher",)
    ),
    Feature("disabled", "a disabled guard changes no bit", guards.check_disabled, "guard"),
    Feature(
        "acts", "every image is acted on, with one decision each; a rerun agrees", guards.check_acts, "guard", "all"
    ),
    Feature("detach", "the pipeline is left exactly as it was found", guards.check_detach, "guard"),
    Feature("save and load", "`save_pretrained`, `from_pretrained`", guards.check_save_and_load, "guard"),
    Feature("batch", "a batch of two equals two single runs", guards.check_batch, "guard"),
    Feature("images per prompt", "several images of one prompt", guards.check_images_per_prompt, "guard"),
    Feature("guidance off", "no classifier-free guidance", guards.check_guidance_off, "guard"),
    Feature("negative prompt", "the user's `negative_prompt` goes on working", guards.check_negative_prompt, "guard"),
    Feature("prompt embeddings", "`prompt_embeds` in place of a prompt", guards.check_prompt_embeds, "guard"),
    Feature(
        "extra rows",
        "a guard's own prompts ride in the same denoiser call",
        guards.check_extra_rows,
        "script",
        "all",
        ("extra-texts", "extra-embeds"),
    ),
    Feature("bfloat16", "pipeline in bfloat16", guards.check_bfloat16, "guard"),
    Feature("gradients", "gradients of the images reach the prompt embeddings", guards.check_gradients, "guard"),
    Feature("nesting", "several attachments, taken off in any order", guards.check_nested, "guard"),
    Feature(
        "own rows only",
        "editing one image leaves its neighbour as it is",
        pipelines.check_only_its_rows,
        "script",
        "all",
    ),
    Feature("exception", "a guard that raises, anywhere, fails closed", pipelines.check_exception, "script"),
    Feature("NaN", "a guard that answers NaN, anywhere, fails closed", pipelines.check_nan, "script"),
    Feature(
        "step counts", "late starts and two transformers are followed", pipelines.check_step_counts, "script", "all"
    ),
    Feature("other architecture", "a guard made for another backbone", pipelines.check_other_architecture, "guard"),
    Feature("edited weights", "a fine-tuned backbone only warns", pipelines.check_edited_weights, "guard"),
    Feature(
        "attention slicing", "`enable_attention_slicing`", pipelines.check_attention_slicing, "pipeline", tested=(SD,)
    ),
    Feature("VAE tiling", "`vae.enable_tiling`", pipelines.check_vae_tiling, "pipeline", tested=(SD,)),
    Feature(
        "model offload", "`enable_model_cpu_offload`", pipelines.check_model_offload, "pipeline", tested=(SD, "wan")
    ),
    Feature(
        "sequential offload",
        "accelerate's hooks on every layer",
        pipelines.check_sequential_offload,
        "pipeline",
        tested=(SD, "wan"),
    ),
    Feature(
        "torch.compile",
        "`pipe.unet = torch.compile(pipe.unet)`",
        pipelines.check_compiled_module,
        "pipeline",
        tested=(SD, "flux"),
    ),
    Feature("compile in place", "`pipe.unet.compile()`", pipelines.check_compiled_in_place, "pipeline", tested=(SD,)),
    Feature("compile blocks", "`compile_repeated_blocks`", speed.check_compiled_blocks, "pipeline", tested=("flux",)),
    Feature("group offload", "`enable_group_offload`", speed.check_group_offload, "pipeline", tested=(SD, "wan")),
    Feature(
        "layerwise casting", "weights kept in float8", speed.check_layerwise_casting, "pipeline", tested=(SD, "flux")
    ),
    Feature(
        "channels last",
        "`memory_format=torch.channels_last`",
        speed.check_channels_last,
        "pipeline",
        kinds=("steps",),
        tested=(SD,),
    ),
    Feature("FreeU", "`enable_freeu`", speed.check_free_u, "pipeline", kinds=("steps",), tested=(SD,)),
    Feature("fused projections", "`fuse_qkv_projections`", speed.check_fused_projections, "pipeline", tested=(SD,)),
    Feature(
        "attention backend",
        "`set_attention_backend`",
        speed.check_attention_backend,
        "pipeline",
        kinds=("steps",),
        tested=("flux",),
    ),
    *(
        Feature(name, does, speed.check_cache(name), "pipeline", kinds=("steps", "weights", "rows"), tested=("flux",))
        for name, does in _CACHES
    ),
    Feature("LoRA", "peft layers on the denoiser", pipelines.check_lora, "pipeline"),
    Feature(
        "load_lora_weights",
        "LoRA loaded and unloaded by the pipeline",
        pipelines.check_loaded_lora,
        "pipeline",
        tested=(SD, "flux"),
    ),
    Feature("IP-Adapter", "image prompts", pipelines.check_ip_adapter, "pipeline"),
    Feature(
        "ControlNet", "the ControlNet reads what the denoiser reads", pipelines.check_controlnet, "pipeline", "all"
    ),
    Feature("skip layers", "SD3's `skip_guidance_layers`", pipelines.check_skip_layers, "pipeline"),
    Feature(
        "base and refiner", "`denoising_end`, `denoising_start`", pipelines.check_base_and_refiner, "pipeline", "all"
    ),
    Feature(
        "scheduler swapped",
        "another scheduler after attaching",
        pipelines.check_scheduler_swapped,
        "pipeline",
        tested=(SD, "flux", "wan"),
    ),
    Feature("denoiser swapped", "another denoiser after attaching", pipelines.check_swapped_denoiser, "pipeline"),
    Feature("deepcopy", "a copy of a guarded pipeline", pipelines.check_deepcopy, "pipeline", tested=(SD, "flux")),
    Feature(
        "from_pipe", "two pipelines around one denoiser", pipelines.check_from_pipe, "pipeline", tested=(SD, "flux")
    ),
    Feature("callback", "the user's `callback_on_step_end` goes on working", pipelines.check_callback, "pipeline"),
)
FEATURES: dict[str, Feature] = {feature.name: feature for feature in _ROWS}
assert len(FEATURES) == len(_ROWS), "two features have the same name"
