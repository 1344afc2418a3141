"""Family: what the seam must know about a family of pipelines, one row of the table.

The denoiser's time is no column: the seam takes t from the scheduler, never from the denoiser's arguments (FLUX passes
t/1000, Z-Image 1000 - t).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from saferedir.pipelines.packing import Packing
from saferedir.utils.renamed import OldAttribute

CfgLayout = Literal["uncond_cond", "cond_uncond", "sequential", "cond_uncond_blank", "none"]
#: a block of rows of one denoiser call. "cond": under the prompts; "uncond": under the negative prompts; "perturbed": under the
#: prompts, with perturbed attention; "blank": under the negative prompts, without the input image
Part = Literal["cond", "uncond", "perturbed", "blank"]
#: parts that are given the prompts' embeddings
CONDITIONAL: tuple[Part, ...] = ("cond", "perturbed")
Conditioned = Literal["text", "class", "nothing"]
PromptLengths = Literal["set", "own", "longest"]


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
class SecondPrompt:
    """A second sequence of prompt embeddings that a denoiser is given; guards are given both as one (`pipelines.joined`).

    Attributes:
        argument: keyword of the denoiser with the embeddings (R, M, E); with `layers` they are (K, R, M, E), K states a token.
        position: "tokens": its tokens stand before the prompt's, (R, M + L, max(D, E)), the narrower ones end in zeros.
            "channels": its states stand beside the prompt's, (R, max(L, M), D + K * E), the shorter sequence ends in zeros.
        width: denoiser config entry with E.
        layers: denoiser config entry with the places among the K states of those that are read; None for one state a token.
        mask: keyword of its mask (R, M), where the prompt has one, too.
        length: attribute of the pipeline with M, where it is always the same; other ones are refused.
        encoder_settings: of a call of `encode_prompt` of its own that makes it; {} where one call makes both.
    """

    argument: str
    position: Literal["tokens", "channels"]
    width: str
    layers: str | None = None
    mask: str | None = None
    length: str | None = None
    encoder_settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row: everything the seam must know about a family of pipelines.

    Attributes:
        name: our name of the family.
        pipelines: diffusers class names; subclasses count.
        denoiser: attribute of the pipeline holding the UNet or transformer.
        more_denoisers: attributes of further ones that take over in the middle of a run; may be None.
        conditioned_modules: attributes of modules that read the same conditioning before the denoiser does (ControlNet).
        denoiser_variables: variables of the pipeline's call with the prompt embeddings and the pooled ones that the denoiser
            will be given, where a conditioned module may be given zeros or nothing in the place of one of them.
        text_encoders: attributes holding the text encoders.
        conditioned_on: "text"; "class", a label an image; or "nothing". Only with text is there a prompt that a guard can read.
        cfg_layout: rows of classifier-free guidance: halves of one denoiser call in the named order, or
            "sequential": one call for the conditional rows, then one for the unconditional rows. "cond_uncond_blank": a third
            block under the negative prompts has no input image (InstructPix2Pix).
            "none": guidance is distilled, and there are no unconditional rows. Rows of perturbed-attention guidance are
            no fact of the family: the pipeline says whether there are some, and they are the last.
        latents_arg, prompt_arg: (position, keyword) of the denoiser's latents and prompt embeddings.
        time_arg: the same of the scheduler's own timestep, where the denoiser is given it unchanged.
        row_kwargs: other keyword arguments with one entry per row (tensors, also in lists and dicts), to
            extend when rows are added.
        pooled_kwarg: path of the pooled embeddings in the keyword arguments, () where there are none.
        mask_kwarg: keyword of the prompt mask; None where the denoiser attends to every token, padding
            included.
        positions_kwarg: keyword of the positions of a prompt's tokens, (L,) from 0; None where the denoiser counts by itself.
        auxiliary_kwarg: keyword that marks a call beside the prediction proper (SD3's skip-layer guidance).
        steps_both_halves: whether the scheduler is given the rows of both halves, which are copies of one another.
        guidance_offset: what is added to the pipeline's guidance scale to make the factor of the prompt's prediction less the
            negative prompt's: 1 where guidance is pos + w (pos - neg).
        distilled_guidance: whether the pipeline's `guidance_scale` is an input of the network and no weight of two predictions;
            classifier-free guidance then has `true_cfg_scale`, or there is none.
        time_from_sigma: whether the scheduler is given timesteps other than 1000 sigma; `Step.t` is 1000 sigma none the less.
        truncates_guidance: whether guidance may end in the middle of a run although the pipeline says that it guides.
        listed: names of the denoiser's leading arguments where its latents and prompts are lists with one tensor a row, and so is
            its output; () where they are tensors. Their mask, `mask_kwarg`, is made by us.
        packing: how latents become a sequence; None where the denoiser takes (R, C, h, w).
        keeps_area: whether the pipeline scales the size that is asked for to the area of its default, in steps of two latents.
        omits_shift: whether the pipeline scales its autoencoder's latents without the `shift_factor` that its config has.
        sign: denoiser output times `sign` is what the scheduler is given.
        prompt_width: denoiser config entry with the width D of the prompt embeddings.
        latent_channels: denoiser config entry with the number C of channels of what it returns.
        prompt_layers: denoiser config entry with the number K of states of each token that it is given one beside the other,
            (R, L, K, D); guards are given (R, L, K * D). None where it is given (R, L, D).
        second_prompt: a second sequence of prompt embeddings; None where the denoiser is given one.
        first_token_is_read: whether the denoiser reads a prompt's first token even where its mask hides it, so that such masks
            are refused.
        guiders: classes of the pipeline's `guider` that are known to call the denoiser for the prompt, and then for the negative
            prompt; others are refused. () where there is no such component.
        encoder_settings: arguments with which the pipeline calls its own `encode_prompt`, whatever its call says.
        encoded: what `encode_prompt` returns, by position; "prompt", "pooled", "mask", "second" and
            "second_mask" are read.
        has_bos: whether prompts begin with a token that says nothing and must not be moved.
        length_matters: whether `max_sequence_length` changes the embeddings of a prompt's own tokens: False only where the
            encoder gets the mask of the padding, and so does the denoiser (or it gets zeros).
        prompt_lengths: how long prompt embeddings are. "set": as long as `max_sequence_length` says, or always the same.
            "own": as long as the prompt; shorter ones of a batch are masked, and where nothing is masked the mask is left out.
            "longest": as the longest prompt of a batch, without a mask.
        padding_is_read: whether masked padding shapes the image none the less, so that a guard must not make prompts longer.
        has_inner_mask: whether the denoiser hides a prompt's padding by a mask that guards neither read nor write.
        encoder_reads_image: whether the text encoder reads an image beside the prompt. Guards judge what came of both; those with
            words of their own are refused, for there are no embeddings without an image.
        prompt_in_attention: whether image tokens meet the prompt's tokens in attention layers alone, where `on_attention` can
            show what they bring: as `encoder_hidden_states`, or in `single_transformer_blocks` with the prompt in front.
        is_prompt_per_frame: whether the denoiser is given a prompt's embeddings once for each frame of its video (AnimateDiff).
        text_encoder_facts: the text encoders whose tokens a guard may mask, in this order; () where we know none.
        differences: class name -> facts of that pipeline which differ from the row's; `family_of` knows them.
    """

    name: str
    pipelines: tuple[str, ...]
    text_encoders: tuple[str, ...]
    denoiser: str = "transformer"
    more_denoisers: tuple[str, ...] = ()
    conditioned_modules: tuple[str, ...] = ()
    denoiser_variables: tuple[str, str] | None = None
    conditioned_on: Conditioned = "text"
    cfg_layout: CfgLayout = "uncond_cond"
    steps_both_halves: bool = False
    latents_arg: tuple[int, str] = (0, "hidden_states")
    prompt_arg: tuple[int, str] = (1, "encoder_hidden_states")
    time_arg: tuple[int, str] | None = None
    row_kwargs: tuple[str, ...] = ("timestep", "guidance")
    pooled_kwarg: tuple[str, ...] = ()
    mask_kwarg: str | None = None
    positions_kwarg: str | None = None
    auxiliary_kwarg: str | None = None
    guidance_offset: float = 0.0
    truncates_guidance: bool = False
    distilled_guidance: bool = False
    time_from_sigma: bool = False
    listed: tuple[str, ...] = ()
    packing: Packing | None = None
    keeps_area: bool = False
    omits_shift: bool = False
    sign: float = 1.0
    prompt_width: str = "joint_attention_dim"
    latent_channels: str = "out_channels"
    prompt_layers: str | None = None
    second_prompt: SecondPrompt | None = None
    first_token_is_read: bool = False
    guiders: tuple[str, ...] = ()
    encoder_settings: Mapping[str, Any] = field(default_factory=dict)
    encoded: tuple[str, ...] = ("prompt",)
    has_bos: bool = False
    length_matters: bool = True
    prompt_lengths: PromptLengths = "set"
    padding_is_read: bool = False
    has_inner_mask: bool = False
    encoder_reads_image: bool = False
    prompt_in_attention: bool = False
    is_prompt_per_frame: bool = False
    text_encoder_facts: tuple[TextEncoderFacts, ...] = ()
    differences: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)

    towers = OldAttribute("text_encoder_facts")
    companions = OldAttribute("conditioned_modules")

    @property
    def has_text(self) -> bool:
        """Whether there are prompts: what the pipelines of other families generate, no words decide."""
        return self.conditioned_on == "text"

    @property
    def has_set_lengths(self) -> bool:
        """Whether all prompts of one call of the pipeline, and negative prompts, are encoded to the same length."""
        return self.prompt_lengths == "set"

    @property
    def is_sequential(self) -> bool:
        """Whether conditional and unconditional rows come in calls of their own."""
        return self.cfg_layout == "sequential"

    @property
    def encodes_negatives(self) -> bool:
        """Whether `encode_prompt` answers with negative embeddings as the denoiser is given them."""
        return "negative" in self.encoded and self.second_prompt is None and not self.listed

    def prompt_width_in(self, config: Mapping[str, Any]) -> int | None:
        """Width of the prompt embeddings as guards are given them, by the denoiser's config; None where it does not say it."""
        width: int | None = _entry(config, self.prompt_width)
        layers: int | None = config.get(self.prompt_layers) if self.prompt_layers else 1
        width = width * layers if isinstance(width, int) and isinstance(layers, int) else width
        second = self.second_prompt
        other = None if second is None else _entry(config, second.width)
        if second is None or width is None or other is None:
            return width
        if second.position == "tokens":
            return max(width, other)
        return width + other * (max(config[second.layers]) + 1 if second.layers else 1)

    def parts(self, *, is_guided: bool) -> tuple[Part, ...]:
        """Blocks of rows of a call, in its order, with and without classifier-free guidance in it."""
        return _PARTS[self.cfg_layout] if is_guided else ("cond",)


_PARTS: Mapping[CfgLayout, tuple[Part, ...]] = {
    "uncond_cond": ("uncond", "cond"),
    "cond_uncond": ("cond", "uncond"),
    "sequential": ("cond",),
    "none": ("cond",),
    "cond_uncond_blank": ("cond", "uncond", "blank"),
}


def _entry(config: Mapping[str, Any], name: str) -> int | None:
    """The number of a config entry, "name" or "name.0" for the first one of a list; None where it is not there."""
    name, _, index = name.partition(".")
    value = config.get(name)
    number: int | None = value[int(index)] if index and value is not None else value
    return number
