"""The methods, one row each: the class that serves it, its paper, what it needs and what it costs. Plain data, no torch.

`guards.methods` binds the classes, `saferedir methods` prints the rows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method.

    Attributes:
        name: the "method" of a `guard_config.json`.
        target: "module:Class" of its guard.
        title: what it does, in a few words.
        paper: arXiv id; "" for a baseline without one.
        needs: what a guard of it is made from.
        cost: denoiser rows of a run under guidance, as a multiple of the unguarded run's.
        command: how to make one on the command line, or in Python where there is no command.
    """

    name: str
    target: str
    title: str
    paper: str
    needs: str
    cost: str
    command: str


METHODS: tuple[Method, ...] = (
    Method(
        name="saferedir",
        target="saferedir.guards.saferedir.guard:SafeRedir",
        title="redirects prompt embeddings that head for the concept; watches the image as it forms",
        paper="2601.08623",
        needs="prompt pairs; training, minutes to hours",
        cost="1.0x",
        command="saferedir train saferedir",
    ),
    Method(
        name="saferedir_many",
        target="saferedir.guards.saferedir_many.guard:SafeRedirMany",
        title="SafeRedir for many concepts in one guard: one trunk, a row each",
        paper="2601.08623",
        needs="prompt pairs of each concept; training",
        cost="1.0x",
        command="saferedir train saferedir-many",
    ),
    Method(
        name="duo",
        target="saferedir.guards.duo.guard:DUO",
        title="a LoRA unlearned from image pairs, taken on and off like any guard",
        paper="2407.21035",
        needs="image pairs; training",
        cost="1.0x",
        command="saferedir train duo",
    ),
    Method(
        name="uce",
        target="saferedir.guards.uce:UCE",
        title="a closed-form edit of the text projections, taken on and off like any guard",
        paper="2308.14761",
        needs="prompt pairs; seconds",
        cost="1.0x",
        command="saferedir train uce",
    ),
    Method(
        name="esd",
        target="saferedir.guards.esd:ESD",
        title="a LoRA fine-tuned to predict away from words, taken on and off like any guard",
        paper="2303.07345",
        needs="words; training",
        cost="1.0x",
        command="saferedir train esd",
    ),
    Method(
        name="safe_denoiser",
        target="saferedir.guards.safe_denoiser:SafeDenoiser",
        title="moves the denoised estimate away from the mean of a set of images",
        paper="2502.08011",
        needs="a set of images",
        cost="1.0x",
        command="saferedir negation build",
    ),
    Method(
        name="spell",
        target="saferedir.guards.spell:SPELL",
        title="repels the denoised estimate from each image of a set that comes near",
        paper="2410.06025",
        needs="a set of images",
        cost="1.0x",
        command="saferedir negation build",
    ),
    Method(
        name="dual_latent_r1",
        target="saferedir.guards.dual_latent.r1:DualLatentR1",
        title="mixes in a safe prompt's prediction, with a safety level (our reconstruction)",
        paper="2411.13982",
        needs="a safe prompt",
        cost="1.5x",
        command="DualLatentR1(DualLatentR1Config(concept=...))",
    ),
    Method(
        name="dual_latent_r2",
        target="saferedir.guards.dual_latent.r2:DualLatentR2",
        title="generates a second latent under a safe prompt for a while and merges the two (our reconstruction)",
        paper="2411.13982",
        needs="a safe prompt",
        cost="1.2x",
        command="DualLatentR2(DualLatentR2Config(concept=...))",
    ),
    Method(
        name="sld",
        target="saferedir.guards.sld:SLD",
        title="guides away from words",
        paper="2211.05105",
        needs="words",
        cost="1.5x",
        command="SLD(SLDConfig(concept=...))",
    ),
    Method(
        name="safree",
        target="saferedir.guards.safree:Safree",
        title="projects prompt tokens out of the words' subspace",
        paper="2410.12761",
        needs="words",
        cost="1.0x to 1.5x",
        command="Safree(SafreeConfig(concept=...))",
    ),
    Method(
        name="nag",
        target="saferedir.guards.nag:NAG",
        title="guides attention away from words, also without classifier-free guidance",
        paper="2505.21179",
        needs="words",
        cost="1.5x",
        command="NAG(NAGConfig(concept=...))",
    ),
    Method(
        name="negative_prompt",
        target="saferedir.guards.negative_prompt:NegativePrompt",
        title="the baseline that every method should beat",
        paper="",
        needs="words",
        cost="1.0x",
        command="NegativePrompt(NegativePromptConfig(concept=...))",
    ),
)
