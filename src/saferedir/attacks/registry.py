"""The attacks by name: one line each, in an explicit table that raises on a clash."""

from __future__ import annotations

from typing import Any

from saferedir.attacks.base import Attack
from saferedir.attacks.embeddings.concept_inversion import ConceptInversion
from saferedir.attacks.embeddings.soft_embedding import SoftEmbedding
from saferedir.attacks.latents.best_of_n import BestOfN
from saferedir.attacks.latents.completion import Completion
from saferedir.attacks.latents.image_to_image import ImageToImage
from saferedir.attacks.latents.inpaint import Inpaint
from saferedir.attacks.latents.ip_adapter import IPAdapter
from saferedir.attacks.latents.latent_gradient import LatentGradient
from saferedir.attacks.latents.latent_inversion import LatentInversion
from saferedir.attacks.latents.noise_overload import NoiseOverload
from saferedir.attacks.latents.recall import Recall
from saferedir.attacks.none import NoAttack
from saferedir.attacks.phrasings import Phrasings
from saferedir.attacks.text.greedy_coordinate import GreedyCoordinate
from saferedir.attacks.text.obfuscation import Obfuscation
from saferedir.attacks.text.p4d import P4D
from saferedir.attacks.text.ring_a_bell import RingABell
from saferedir.attacks.text.unlearn_diff_atk import UnlearnDiffAtk
from saferedir.errors import AttackError, SaferedirError
from saferedir.utils.names import unknown_name_message

ATTACKS: dict[str, type[Attack[Any]]] = {}


def register(attack: type[Attack[Any]]) -> None:
    """Add one attack; a name already taken is an error."""
    if attack.name in ATTACKS:
        raise SaferedirError(f"an attack named {attack.name!r} is registered already.")
    ATTACKS[attack.name] = attack


def attack_class(name: str) -> type[Attack[Any]]:
    """The class of an attack; an unknown name is one clear sentence."""
    if name not in ATTACKS:
        raise AttackError(unknown_name_message("attack", name, ATTACKS))
    return ATTACKS[name]


register(NoAttack)
register(Phrasings)
register(Obfuscation)
register(BestOfN)
register(NoiseOverload)
register(RingABell)
register(GreedyCoordinate)
register(P4D)
register(UnlearnDiffAtk)
register(ConceptInversion)
register(SoftEmbedding)
register(LatentInversion)
register(LatentGradient)
register(Completion)
register(ImageToImage)
register(Recall)
register(Inpaint)
register(IPAdapter)
