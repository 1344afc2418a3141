"""REFUSED: pipeline classes of diffusers that guards are not attached to, and why; used in the error that refuses them.

A class that is neither here nor in a family is one whose calls nobody has read. Imports nothing.
"""

from __future__ import annotations

_TWO_STAGES = (
    "the prompt is read by a prior, in a pipeline of its own, and the decoder that makes the image is given image embeddings "
    "instead, which no guard reads"
)
_LEARNED = (
    "its denoiser works on pixels in stages and predicts the variance, which the known schedules have no place for"
)
_WITH_SOUND = (
    "its denoiser is given the prompt twice, once for video and once for sound, and guards would edit one of them"
)
_KEPT_KEYS = "its denoiser keeps keys and values of the first step for the later ones, which an edit would not reach"
_FRAMES = "the prompt is repeated for every frame, in more rows than there are latents, which no layout of rows here describes"
_LOOP = "it calls the denoiser several times a step, with schedulers of its own, so that its steps cannot be followed"
_NO_PROMPT_ARGUMENT = (
    "the prompt enters its denoiser as token ids, not as embeddings that a guard could read or replace"
)

#: class name -> why, as the end of a sentence
REFUSED: dict[str, str] = {
    # text to image, image to image, inpainting
    **dict.fromkeys(("IFPipeline", "IFImg2ImgPipeline", "IFInpaintingPipeline"), _LEARNED),
    **dict.fromkeys(
        (
            "KandinskyCombinedPipeline",
            "KandinskyImg2ImgCombinedPipeline",
            "KandinskyInpaintCombinedPipeline",
            "KandinskyV22CombinedPipeline",
            "KandinskyV22Img2ImgCombinedPipeline",
            "KandinskyV22InpaintCombinedPipeline",
            "WuerstchenCombinedPipeline",
            "StableCascadeCombinedPipeline",
            "StableUnCLIPPipeline",
        ),
        _TWO_STAGES,
    ),
    **dict.fromkeys(("Flux2KleinKVPipeline", "QwenImage21Pipeline"), _KEPT_KEYS),
    **dict.fromkeys(
        ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline", "CogVideoXVideoToVideoPipeline"),
        "its latents have frames before channels, and schedulers of their own",
    ),
    "ChromaInpaintPipeline": "it does not run in diffusers 0.42: it asks its denoiser's config for guidance_embeds",
    "GlmImagePipeline": "a language model makes image tokens of the prompt first, which its denoiser reads beside the prompt",
    "HeliosPipeline": "it generates videos in chunks, each of which is denoised after the last one within one call",
    "HeliosPyramidPipeline": "it generates videos in chunks, each of which is denoised at several sizes within one call",
    "Ideogram4Pipeline": "the negative prompt is read by a second transformer, and prompt and latents share one sequence",
    "ZImageOmniPipeline": "its prompts hold the features of input images, which no guard reads",
    "QwenImageLayeredPipeline": "its latents are the layers of one image, an axis that guards do not know",
    "OmniGenPipeline": _NO_PROMPT_ARGUMENT,
    "LTXConditionPipeline": "its scheduler steps every token by a time of its own, which no schedule here describes",
    "LTXI2VLongMultiPromptPipeline": "its prompt changes from window to window of a video, within one call",
    **dict.fromkeys(
        (
            "LTX2Pipeline",
            "LTX2ImageToVideoPipeline",
            "LTX2ConditionPipeline",
            "LTX2InContextPipeline",
            "LTX2HDRPipeline",
            "LTX2DFRPipeline",
            "LTX2DFRTemporalRefinePipeline",
        ),
        _WITH_SOUND,
    ),
    # relatives
    **dict.fromkeys(
        (
            "AnimateDiffSDXLPipeline",
            "AnimateDiffControlNetPipeline",
            "AnimateDiffSparseControlNetPipeline",
            "AnimateDiffVideoToVideoPipeline",
            "AnimateDiffVideoToVideoControlNetPipeline",
        ),
        _FRAMES,
    ),
    **dict.fromkeys(("StableDiffusionSAGPipeline", "StableDiffusionPanoramaPipeline"), _LOOP),
    **dict.fromkeys(
        ("StableDiffusionUpscalePipeline", "StableDiffusionLatentUpscalePipeline"),
        "it enlarges an image that is there, and guards have not been tried on it; guard the pipeline that makes that image",
    ),
    "StableDiffusionGLIGENPipeline": "phrases for regions enter past the prompt, which no guard reads",
}
