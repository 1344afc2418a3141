"""Makes a UCE guard from prompt pairs: a closed-form edit of the text projections, in seconds and without an image.

Implements "Unified Concept Editing in Diffusion Models" (arXiv:2308.14761), docs/methods/uce.md. Deviations: the target of
every token is the token of a counterpart prompt; each prompt has one vote, however many tokens it has; solved in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferedir.errors import GuardConfigError
from saferedir.guards.uce import UCE, UCEConfig
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families import family_of, unwrapped
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.seam.requirements import check_one_denoiser
from saferedir.training.lora import refuse_adapters, versions
from saferedir.training.saferedir.dataset import (
    Pair,
    check_call,
    encode_on_cpu,
    hash_pairs,
    read_pairs,
    require_call_arguments,
)
from saferedir.training.uce.layers import TextLayers, inputs_of, modules_of, text_layers
from saferedir.training.uce.solve import Sums, factors, input_edit
from saferedir.training.uce.tokens import TOKENS, Row, pair_rows, read_tokens
from saferedir.utils.checks import Checked
from saferedir.utils.files import check_guard_folder
from saferedir.utils.locks import output_lock
from saferedir.utils.progress import SILENT, Progress


@dataclass(frozen=True)
class TrainConfig(Checked):
    """How to make a UCE guard; symbols: docs/methods/uce.md.

    Attributes:
        erase_scale: s_e, the vote of a prompt with the concept.
        preserve_scale: s_p, the vote of a prompt that is to be projected as before: those without a counterpart.
        target_scale: the same of the counterparts, which replace the concept.
        ridge: lambda, what holds W* at W where no prompt says anything; 0 for the smallest change that fits.
        tokens: "all" tokens that the denoiser reads have a counterpart, padding included; "last" is the last token of the concept
            alone, as the released code has it.
        call: arguments of the pipeline's call that change embeddings, such as max_sequence_length.

    Example:
        >>> from saferedir.training.uce.train import TrainConfig
        >>> TrainConfig(ridge=1.0).tokens
        'all'
    """

    erase_scale: float = 1.0
    preserve_scale: float = 1.0
    target_scale: float = 1.0
    ridge: float = 0.5
    tokens: str = "all"
    call: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.require_number("erase_scale", above=0)
        self.require_number("preserve_scale", "target_scale", "ridge", at_least=0)
        self.require_choice("tokens", TOKENS)
        check_call(self.call)


def check_editable(pipe: Any) -> None:
    """Raise unless UCE has a closed form for this pipeline as it stands."""
    layers, family = text_layers(pipe), family_of(pipe)
    check_one_denoiser(pipe, family, UCE.method)
    denoiser = unwrapped(getattr(pipe, family.denoiser))
    refuse_adapters(denoiser)
    for row in layers:
        modules_of(denoiser, row)


def train_uce(
    pipe: Any,
    pairs: str | Path | Sequence[Pair],
    out: str | Path,
    *,
    concept: str,
    config: TrainConfig | None = None,
    progress: Progress = SILENT,
    overwrite: bool = False,
) -> UCE:
    """Make a UCE guard for `pipe` and save it in the folder `out`.

    Args:
        pipe: a supported pipeline without guards and LoRAs; it stays as it is.
        pairs: prompts with the concept and their counterparts without it, and prompts to preserve (`unsafe` None), or their file.
        out: folder for the guard.
        concept: its name, for decisions and the guard's card.
        config: the settings; default: `TrainConfig()`.
        progress: shows how far it is; default: nothing is shown.
        overwrite: whether a guard that stands at `out` may be replaced.

    Returns:
        The guard, a LoRA of the denoiser.

    Raises:
        OutputError: another run is writing to `out`, or a guard stands there and may not be replaced.
        GuardConfigError: no pair, or LoRAs on the pipeline.
        UnsupportedPipelineError: the family has no closed form.

    Example:
        >>> import saferedir as sr
        >>> from saferedir.training.saferedir.dataset import Pair
        >>> pipe = sr.load_pipeline("pictoworld")
        >>> pairs = [Pair("a red star", "a red circle"), Pair(None, "a red heart")]
        >>> sr.train_uce(pipe, pairs, "runs/star-uce", concept="star").method
        'uce'
    """
    with output_lock(Path(out), nested=True) as folder:
        check_guard_folder(folder, overwrite, "pass overwrite=True")
        guard = make_uce(pipe, pairs, concept=concept, config=config, progress=progress)
        guard.save_pretrained(folder)
    return guard


@torch.no_grad()
def make_uce(
    pipe: Any,
    pairs: str | Path | Sequence[Pair],
    *,
    concept: str,
    config: TrainConfig | None = None,
    progress: Progress = SILENT,
) -> UCE:
    """The guard that `train_uce` saves."""
    config = config or TrainConfig()
    rows = list(read_pairs(Path(pairs).expanduser()) if isinstance(pairs, (str, Path)) else pairs)
    erased = [(pair.unsafe, pair.safe) for pair in rows if pair.unsafe is not None]
    if not erased:
        raise GuardConfigError("there is no prompt with the concept among these pairs; UCE needs at least one.")
    check_editable(pipe)
    require_call_arguments(pipe, config.call)
    unsafe, safe = [text for text, _ in erased], [text for _, text in erased]
    kept = [pair.safe for pair in rows if pair.unsafe is None]
    family = family_of(pipe)
    denoiser = unwrapped(getattr(pipe, family.denoiser))
    lora: dict[str, Tensor] = {}
    with progress.task("encoding", 2) as advance:
        both = encode_on_cpu(pipe, [*unsafe, *safe], config.call)
        advance(1)
        preserved = encode_on_cpu(pipe, kept, config.call) if kept else None
        advance(1)
    both = _as_read(pipe, both)
    chosen = pair_rows(pipe, unsafe, safe, both, config.tokens)
    layers, edits = text_layers(pipe), []
    with progress.task("solving", len(layers)) as advance:
        for row in layers:
            sums = _sums(pipe, row, both, None if preserved is None else _as_read(pipe, preserved), chosen, config)
            edits.append(None if sums is None else factors(input_edit(sums, config.ridge)))
            advance(1)
    rank = max(edit[1].shape[0] for edit in edits if edit is not None)
    for row, edit in zip(layers, edits, strict=True):
        for name, module in (modules_of(denoiser, row) if edit is not None else {}).items():
            assert edit is not None
            left, right = edit
            lora[f"{name}.lora_A.weight"] = _padded(right, rank, 0)
            lora[f"{name}.lora_B.weight"] = _padded(module.weight.double().cpu() @ left, rank, 1)
    facts = {
        **asdict(config),
        "pairs": len(erased),
        "preserved": len(kept),
        "pairs_sha256": hash_pairs(rows),
        "layers": len(lora) // 2,
        "versions": versions(),
    }
    guard = UCE(
        UCEConfig(
            concept=concept,
            backbone=backbone_fingerprint(pipe),
            component=family.denoiser,
            rank=rank,
            targets=tuple(dict.fromkeys(end for row in layers for end in row.ends)),
            training=facts,
        ),
        lora,
    )
    guard.require_effect()
    return guard


def _as_read(pipe: Any, embeds: PromptEmbeds) -> PromptEmbeds:
    """With the mask that the denoiser is given; zeros of padding that it reads all the same are no mask."""
    return embeds if family_of(pipe).mask_kwarg is not None else embeds._replace(mask=None)


def _sums(
    pipe: Any,
    layers: TextLayers,
    both: PromptEmbeds,
    preserved: PromptEmbeds | None,
    chosen: Sequence[Sequence[Row]],
    config: TrainConfig,
) -> Sums | None:
    """What the closed form needs, for layers with one input; None where the pipeline has no such input."""
    inputs = inputs_of(pipe, layers, both)
    if inputs is None:
        return None
    unsafe, safe = inputs.chunk(2)
    is_pooled = layers.reads == "pooled"
    rows = [[Row(0, 0, True)] for _ in chosen] if is_pooled else chosen
    c = torch.cat([unsafe[n, [row.position for row in pair]] for n, pair in enumerate(rows)])
    t = torch.cat([safe[n, [row.counterpart for row in pair]] for n, pair in enumerate(rows)])
    s_e = torch.cat([torch.full((len(pair),), config.erase_scale / len(pair)) for pair in rows if pair])
    everything = [(safe, both.rows(slice(len(chosen), None)), config.target_scale)]
    if preserved is not None:
        others = inputs_of(pipe, layers, preserved)
        assert others is not None
        everything.append((others, preserved, config.preserve_scale))
    p, s_p = [], []
    for values, embeds, scale in everything:
        read = torch.ones(values.shape[:2], dtype=torch.bool) if is_pooled else read_tokens(embeds)
        p.append(values[read])
        s_p.append((scale / read.sum(1, keepdim=True)).expand(read.shape)[read])
    return Sums.of(c, t, torch.cat(p), s_e, torch.cat(s_p))


def _padded(part: Tensor, rank: int, dim: int) -> Tensor:
    """A factor with zeros up to the rank that all layers have."""
    missing = [*part.shape]
    missing[dim] = rank - part.shape[dim]
    return torch.cat([part, part.new_zeros(missing)], dim=dim).float()
