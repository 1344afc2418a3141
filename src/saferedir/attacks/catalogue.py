"""The searching attacks for people, one row each: what it does, its paper, and its threat model. Plain data, no torch.

The classes take their threat model from here (`Attack.__init_subclass__`), `saferedir attack list` prints the rows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """One attack.

    Attributes:
        name: in the registry.
        title: what it does, in a few words.
        paper: arXiv id; "" for one without.
        knowledge: T1 nothing but returned images, T2 any argument of the API, T3 white box.
        channel: what is sent.
        rung: of the ladder.
        cost: what "quick" spends on a prompt, apart from generating what is judged.
    """

    name: str
    title: str
    paper: str
    knowledge: str
    channel: str
    rung: str
    cost: str


ATTACK_ROWS: tuple[AttackRow, ...] = (
    AttackRow(
        name="obfuscation",
        title="misspellings, digits, look-alike letters, cut words, clauses in front",
        paper="",
        knowledge="T1",
        channel="text",
        rung="static",
        cost="nothing",
    ),
    AttackRow(
        name="best-of-n",
        title="the prompt as it is, on N noise seeds",
        paper="",
        knowledge="T1",
        channel="text",
        rung="none",
        cost="nothing",
    ),
    AttackRow(
        name="noise-overload",
        title="more noise than the sampler expects, at the start and in every step",
        paper="2505.17013",
        knowledge="T2",
        channel="latents",
        rung="static",
        cost="nothing",
    ),
    AttackRow(
        name="ring-a-bell",
        title="genetic search for a text with the concept's embedding",
        paper="2310.10012",
        knowledge="T1",
        channel="text",
        rung="transfer",
        cost="350 rows of a text encoder",
    ),
    AttackRow(
        name="greedy-coordinate",
        title="greedy coordinate gradient for a text with the prompt's embedding and none of its words",
        paper="2311.17516",
        knowledge="T1",
        channel="text",
        rung="transfer",
        cost="330 rows of a text encoder",
    ),
    AttackRow(
        name="p4d",
        title="text by which the guarded model predicts what the bare model predicts for the prompt",
        paper="2309.06135",
        knowledge="T3",
        channel="text",
        rung="adaptive",
        cost="31 gradients, 1 image",
    ),
    AttackRow(
        name="unlearn-diff-atk",
        title="tokens before the prompt that bring an image of the concept back",
        paper="2310.11868",
        knowledge="T3",
        channel="text",
        rung="adaptive",
        cost="20 gradients, 1 image",
    ),
    AttackRow(
        name="concept-inversion",
        title="one soft token that brings the concept back",
        paper="2308.01508",
        knowledge="T3",
        channel="embeddings",
        rung="soft",
        cost="80 gradients, 2 images",
    ),
    AttackRow(
        name="soft-embedding",
        title="every token a free vector: the strongest form of its channel",
        paper="2308.01508",
        knowledge="T3",
        channel="embeddings",
        rung="soft",
        cost="80 gradients, 2 images",
    ),
    AttackRow(
        name="latent-inversion",
        title="noise from which the guarded model arrives at an image of the concept, by inversion",
        paper="",
        knowledge="T3",
        channel="latents",
        rung="latent",
        cost="2 gradients a sampling step, 1 image",
    ),
    AttackRow(
        name="latent-gradient",
        title="the same by gradient through the whole sampling, noise kept at the prior's energy",
        paper="2303.13703",
        knowledge="T3",
        channel="latents",
        rung="latent",
        cost="20 gradients through 10 steps, an inversion, 1 image",
    ),
    AttackRow(
        name="completion",
        title="latents on which the bare model has begun",
        paper="2505.17013",
        knowledge="T2",
        channel="latents",
        rung="latent",
        cost="three parts of a run",
    ),
    AttackRow(
        name="image-to-image",
        title="an image of the concept, noised and generated anew",
        paper="2108.01073",
        knowledge="T2",
        channel="image",
        rung="image",
        cost="1 image",
    ),
    AttackRow(
        name="recall",
        title="a starting image, half noise, optimised until it is continued to the concept",
        paper="2507.07139",
        knowledge="T3",
        channel="image",
        rung="image",
        cost="15 gradients, 1 image",
    ),
    AttackRow(
        name="inpaint",
        title="an image of the concept whose centre alone is generated anew",
        paper="2507.07139",
        knowledge="T3",
        channel="image",
        rung="image",
        cost="1 image",
    ),
    AttackRow(
        name="ip-adapter",
        title="an image for the IP-Adapter, of the concept or moved to mean it",
        paper="2308.06721",
        knowledge="T3",
        channel="image",
        rung="image",
        cost="1 image, 20 gradients of the image encoder",
    ),
)

ROWS_BY_NAME: dict[str, AttackRow] = {row.name: row for row in ATTACK_ROWS}
