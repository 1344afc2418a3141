"""Facts about each pipeline family, as data: where the denoiser is and how its inputs and outputs are laid
out.

A new family is one row in `_ROWS`. The denoiser's time is no column: the seam takes t from the scheduler, never from
the denoiser's arguments (FLUX passes t/1000, Z-Image 1000 - t).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from saferedir.errors import UnsupportedPipelineError
from saferedir.pipelines.packing import FLUX_PACKING, Packing
from saferedir.utils.renamed import OldAttribute

CfgLayout = Literal["uncond_cond", "cond_uncond", "sequential"]
Conditioned = Literal["text", "class", "nothing"]


@dataclass(frozen=True, kw_only=True)
class TextEncoderFacts:
    """One text encoder of a family, read by `text_encoders`: how its states become prompt embeddings.

    Attributes:
        kind: what its special tokens are like, and what a pooled state is.
        encoder, tokenizer: attributes of the pipeline; where either is None there is no such text encoder.
        position: its states are the "first", or stand beside the last encoder's (more "channels"), or after them (more
            "tokens"); "pooled": they are no prompt embeddings, its pooled state is the pooled embedding.
        layer: hidden state that is taken, -1 the last one after the final norm.
        is_masked: whether padding is masked in the encoder.
        is_zeroed: whether the states of padding are set to 0.
    """

    kind: Literal["clip", "t5"]
    encoder: str = "text_encoder"
    tokenizer: str = "tokenizer"
    position: Literal["first", "channels", "tokens", "pooled"] = "first"
    layer: int = -1
    is_masked: bool = False
    is_zeroed: bool = False


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row: everything the seam must know about a family of pipelines.

    Attributes:
        name: our name of the family.
        pipelines: diffusers class names; subclasses count.
        denoiser: attribute of the pipeline holding the UNet or transformer.
        more_denoisers: attributes of further ones that take over in the middle of a run; may be None.
        conditioned_modules: attributes of modules that read the same conditioning before the denoiser does (ControlNet).
        text_encoders: attributes holding the text encoders.
        conditioned_on: "text"; "class", a label an image; or "nothing". Only with text is there a prompt that a guard can read.
        cfg_layout: rows of classifier-free guidance: halves of one denoiser call in the named order, or
            "sequential": one call for the conditional rows, then one for the unconditional rows.
        latents_arg, prompt_arg: (position, keyword) of the denoiser's latents and prompt embeddings.
        time_arg: the same of the scheduler's own timestep, where the denoiser is given it unchanged.
        row_kwargs: other keyword arguments with one entry per row (tensors, also in lists and dicts), to
            extend when rows are added.
        pooled_kwarg: path of the pooled embeddings in the keyword arguments, () where there are none.
        mask_kwarg: keyword of the prompt mask; None where the denoiser attends to every token, padding
            included.
        auxiliary_kwarg: keyword that marks a call beside the prediction proper (SD3's skip-layer guidance).
        steps_both_halves: whether the scheduler is given the rows of both halves, which are copies of one another.
        packing: how latents become a sequence; None where the denoiser takes (R, C, h, w).
        sign: denoiser output times `sign` is what the scheduler is given.
        prompt_width: denoiser config entry with the width D of the prompt embeddings.
        encoded: what `encode_prompt` returns, by position; "prompt", "pooled" and "mask" are read.
        has_bos: whether prompts begin with a token that says nothing and must not be moved.
        length_matters: whether `max_sequence_length` changes the embeddings of a prompt's own tokens: False only where the
            encoder gets the mask of the padding, and so does the denoiser (or it gets zeros).
        text_encoder_facts: the text encoders whose tokens a guard may mask, in this order; () where we know none.
    """

    name: str
    pipelines: tuple[str, ...]
    text_encoders: tuple[str, ...]
    denoiser: str = "transformer"
    more_denoisers: tuple[str, ...] = ()
    conditioned_modules: tuple[str, ...] = ()
    conditioned_on: Conditioned = "text"
    cfg_layout: CfgLayout = "uncond_cond"
    steps_both_halves: bool = False
    latents_arg: tuple[int, str] = (0, "hidden_states")
    prompt_arg: tuple[int, str] = (1, "encoder_hidden_states")
    time_arg: tuple[int, str] | None = None
    row_kwargs: tuple[str, ...] = ("timestep", "guidance")
    pooled_kwarg: tuple[str, ...] = ()
    mask_kwarg: str | None = None
    auxiliary_kwarg: str | None = None
    packing: Packing | None = None
    sign: float = 1.0
    prompt_width: str = "joint_attention_dim"
    encoded: tuple[str, ...] = ("prompt",)
    has_bos: bool = False
    length_matters: bool = True
    text_encoder_facts: tuple[TextEncoderFacts, ...] = ()

    towers = OldAttribute("text_encoder_facts")
    companions = OldAttribute("conditioned_modules")

    @property
    def has_text(self) -> bool:
        """Whether there are prompts: what the pipelines of other families generate, no words decide."""
        return self.conditioned_on == "text"

    @property
    def is_sequential(self) -> bool:
        """Whether conditional and unconditional rows come in calls of their own."""
        return self.cfg_layout == "sequential"


UNET_ROWS = (
    "timestep_cond",
    "added_cond_kwargs",
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)

#: two CLIPs side by side, as in SDXL and Stable Diffusion 3
_CLIP_PAIR = (
    TextEncoderFacts(kind="clip", layer=-2),
    TextEncoderFacts(kind="clip", encoder="text_encoder_2", tokenizer="tokenizer_2", position="channels", layer=-2),
)

_ROWS = (
    Family(
        name="stable-diffusion",
        pipelines=(
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionControlNetPipeline",
            "StableDiffusionControlNetImg2ImgPipeline",
            "StableDiffusionControlNetInpaintPipeline",
        ),
        text_encoders=("text_encoder",),
        denoiser="unet",
        conditioned_modules=("controlnet",),
        latents_arg=(0, "sample"),
        prompt_arg=(2, "encoder_hidden_states"),
        time_arg=(1, "timestep"),
        row_kwargs=UNET_ROWS,
        prompt_width="cross_attention_dim",
        has_bos=True,
        text_encoder_facts=(TextEncoderFacts(kind="clip"),),
    ),
    Family(
        name="stable-diffusion-xl",
        pipelines=(
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            "StableDiffusionXLControlNetPipeline",
            "StableDiffusionXLControlNetImg2ImgPipeline",
            "StableDiffusionXLControlNetInpaintPipeline",
        ),
        text_encoders=("text_encoder", "text_encoder_2"),
        denoiser="unet",
        conditioned_modules=("controlnet",),
        latents_arg=(0, "sample"),
        prompt_arg=(2, "encoder_hidden_states"),
        time_arg=(1, "timestep"),
        row_kwargs=UNET_ROWS,
        pooled_kwarg=("added_cond_kwargs", "text_embeds"),
        prompt_width="cross_attention_dim",
        encoded=("prompt", "negative", "pooled", "negative_pooled"),
        has_bos=True,
        text_encoder_facts=_CLIP_PAIR,
    ),
    Family(
        name="stable-diffusion-3",
        pipelines=(
            "StableDiffusion3Pipeline",
            "StableDiffusion3Img2ImgPipeline",
            "StableDiffusion3InpaintPipeline",
        ),
        text_encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
        row_kwargs=("timestep", "joint_attention_kwargs"),
        pooled_kwarg=("pooled_projections",),
        auxiliary_kwarg="skip_layers",
        encoded=("prompt", "negative", "pooled", "negative_pooled"),
        has_bos=True,
        text_encoder_facts=(
            *_CLIP_PAIR,
            TextEncoderFacts(kind="t5", encoder="text_encoder_3", tokenizer="tokenizer_3", position="tokens"),
        ),
    ),
    Family(
        name="flux",
        pipelines=("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
        text_encoders=("text_encoder", "text_encoder_2"),
        cfg_layout="sequential",
        row_kwargs=("timestep", "guidance", "joint_attention_kwargs"),
        pooled_kwarg=("pooled_projections",),
        packing=FLUX_PACKING,
        encoded=("prompt", "pooled"),
        text_encoder_facts=(
            TextEncoderFacts(kind="clip", position="pooled"),
            TextEncoderFacts(kind="t5", encoder="text_encoder_2", tokenizer="tokenizer_2"),
        ),
    ),
    Family(
        name="pixart",
        pipelines=("PixArtSigmaPipeline", "PixArtAlphaPipeline"),
        text_encoders=("text_encoder",),
        row_kwargs=("timestep", "added_cond_kwargs"),
        mask_kwarg="encoder_attention_mask",
        prompt_width="caption_channels",
        encoded=("prompt", "mask"),
        length_matters=False,
        text_encoder_facts=(TextEncoderFacts(kind="t5", is_masked=True),),
    ),
    Family(
        name="sana",
        pipelines=("SanaPipeline",),
        text_encoders=("text_encoder",),
        mask_kwarg="encoder_attention_mask",
        prompt_width="caption_channels",
        encoded=("prompt", "mask"),
        has_bos=True,
        length_matters=False,
    ),
    Family(
        name="lumina-2",
        pipelines=("Lumina2Pipeline",),
        text_encoders=("text_encoder",),
        cfg_layout="sequential",
        mask_kwarg="encoder_attention_mask",
        sign=-1.0,
        prompt_width="cap_feat_dim",
        encoded=("prompt", "mask"),
        has_bos=True,
        length_matters=False,
    ),
    Family(
        name="lumina",
        pipelines=("LuminaPipeline",),
        text_encoders=("text_encoder",),
        cfg_layout="cond_uncond",
        mask_kwarg="encoder_mask",
        sign=-1.0,
        prompt_width="cross_attention_dim",
        encoded=("prompt", "mask"),
        has_bos=True,
    ),
    Family(
        name="aura-flow",
        pipelines=("AuraFlowPipeline",),
        text_encoders=("text_encoder",),
        encoded=("prompt",),
        length_matters=False,
    ),
    Family(
        name="wan",
        pipelines=("WanPipeline",),
        text_encoders=("text_encoder",),
        more_denoisers=("transformer_2",),
        cfg_layout="sequential",
        prompt_width="text_dim",
        length_matters=False,
        text_encoder_facts=(TextEncoderFacts(kind="t5", is_masked=True, is_zeroed=True),),
    ),
    Family(
        name="dit",
        pipelines=("DiTPipeline",),
        text_encoders=(),
        conditioned_on="class",
        cfg_layout="cond_uncond",
        steps_both_halves=True,
        row_kwargs=("timestep", "class_labels"),
    ),
    Family(
        name="unconditional",
        pipelines=("DDPMPipeline", "DDIMPipeline"),
        text_encoders=(),
        denoiser="unet",
        conditioned_on="nothing",
        latents_arg=(0, "sample"),
        time_arg=(1, "timestep"),
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in _ROWS}
if len(FAMILIES) != len(_ROWS):
    raise ValueError("two rows of families.py have the same name.")

#: those with prompts, for which every method was made; the others are for methods that work on the image alone
TEXT_FAMILIES = {name: family for name, family in FAMILIES.items() if family.has_text}


def unwrapped(module: Any) -> Any:
    """The module under torch.compile's wrapper, if there is one."""
    return getattr(module, "_orig_mod", module)


def family_of(pipe: Any) -> Family:
    """The row of a pipeline; raises UnsupportedPipelineError naming what is supported."""
    names = {base.__name__ for base in type(pipe).__mro__}
    for family in FAMILIES.values():
        if names.intersection(family.pipelines):
            return family
    supported = ", ".join(name for family in FAMILIES.values() for name in family.pipelines)
    raise UnsupportedPipelineError(
        f"{type(pipe).__name__} is not supported; supported pipelines: {supported}. "
        "Another family needs one row in saferedir/pipelines/families.py; docs/pipelines.md says how to add it."
    )
