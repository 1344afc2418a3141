"""Trains a SafeRedir guard of many concepts, or adds concepts to one: a shared trunk, a row a concept.

The terms of the loss are those of the guard of one concept (docs/methods/saferedir.md (9) to (14)), concept by concept. Benign
roll-outs are made once for all concepts; of concepts that exclude one another, those of one are benign for the others, too
(distinct.py). A guard acts where any of its K rows does, so a row is allowed a K-th of its false positives. Concepts that are
added learn their rows on the frozen trunk, so that nothing that was there changes by a bit. Everything lands in `<out>.work/`
until the guard is renamed to `out`; a run that was killed goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from saferedir.errors import GuardConfigError
from saferedir.guards.saferedir.assessment import MOST_NAMED, blind_image_side
from saferedir.guards.saferedir.network import Redirector, RedirectorConfig, without_joint
from saferedir.guards.saferedir.rows import with_concept
from saferedir.guards.saferedir.trained_text import require_trained_settings, text_lengths, text_record
from saferedir.guards.saferedir_many import SafeRedirMany, SafeRedirManyConfig
from saferedir.guards.saferedir_many.config import alone
from saferedir.pipelines.families import family_of
from saferedir.pipelines.fingerprint import backbone_fingerprint, check_backbone
from saferedir.pipelines.text_settings import text_settings
from saferedir.training.saferedir.batches import ImageBatch, ImageData, TextData, encode_text, image_batch, text_batch
from saferedir.training.saferedir.calibration import calibrate
from saferedir.training.saferedir.dataset import Pair, hash_pairs, read_pairs, require_call_arguments, split_pairs
from saferedir.training.saferedir.distinct import Others, other_prompts, telling_words
from saferedir.training.saferedir.leads import leads_into
from saferedir.training.saferedir.losses import classification_term, redirection_terms, total
from saferedir.training.saferedir.one_concept import OneConcept
from saferedir.training.saferedir.rollouts import (
    SHORT_IMAGES,
    Prompts,
    calibration_scales,
    generate_rollouts,
    rollout_prompts,
    short_steps,
)
from saferedir.training.saferedir.train import MIN_PAIRS, model_facts, weights_digest
from saferedir.training.saferedir.train_config import TrainConfig
from saferedir.training.work_folder import claim
from saferedir.utils.files import check_guard_folder, replacing
from saferedir.utils.locks import output_lock
from saferedir.utils.progress import SILENT, Progress

RANK = 32  # of a concept's direction
AT_ONCE = 4  # concepts of one optimiser step


@dataclass(frozen=True)
class Side:
    """What one side of the split holds of a concept: texts, and images that show it; benign images are shared."""

    text: TextData
    images: ImageData
    prompts: Sequence[str]
    short: tuple[ImageData, ...] = ()


@dataclass(frozen=True)
class Benign:
    """Benign images of all concepts and the prompt of each; a prompt of one concept's file may show another concept."""

    images: ImageData
    prompts: Sequence[str]

    def of(self, pairs: Sequence[Pair]) -> ImageData:
        """Those that are benign by the pairs of one concept."""
        texts = {pair.safe for pair in pairs}
        return self.images.rows(torch.tensor([row for row, prompt in enumerate(self.prompts) if prompt in texts]))


def train_saferedir_many(
    pipe: Any,
    pairs: Mapping[str, str | Path | Sequence[Pair]],
    out: str | Path,
    *,
    start: SafeRedirMany | None = None,
    config: TrainConfig | None = None,
    progress: Progress = SILENT,
    log: Callable[[dict[str, Any]], None] | None = None,
    overwrite: bool = False,
    keep_weak: bool = True,
    distinct: bool = False,
) -> SafeRedirMany:
    """Train one guard for many concepts and save it in the folder `out`; resumes from `<out>.work` when that exists.

    Args:
        pipe: a supported pipeline without guards; it comes back as it was.
        pairs: concept -> prompt pairs, or a file of them, as of `train_saferedir`.
        out: folder for the guard.
        start: a guard to which the concepts are added; the trunk and its concepts stay as they are, bit for bit.
        config: the settings; `rollouts` are counted a concept, the benign half of them once for all. Default: `TrainConfig()`.
        progress: shows how far it is; default: nothing is shown.
        log: called with the loss now and then.
        overwrite: whether a guard that stands at `out` may be replaced.
        keep_weak: whether a guard is written in which the image side of a concept trained here cannot tell it from the rest on
            held-out images.
        distinct: whether the concepts exclude one another, as characters do: an image of one shows no other unless its prompt
            asks for it. Then each learns from the prompts and images of all others that it is not one of them.

    Returns:
        The guard, with thresholds calibrated concept by concept.

    Raises:
        OutputError: another run is writing to `out`, or a guard stands there and may not be replaced.
        GuardConfigError: no concept, too few pairs of one, a name that `start` has, `<out>.work` belongs to other settings, or a
            concept is weak and not kept; then `<out>.work` stays, so that the same call with keep_weak=True writes the guard.
    """
    config = config or TrainConfig()
    require_call_arguments(pipe, config.call)
    rows = {
        concept: read_pairs(Path(given).expanduser()) if isinstance(given, str | Path) else list(given)
        for concept, given in pairs.items()
    }
    known = () if start is None else start.config.concepts
    twice = [concept for concept in rows if concept in known]
    if not rows or twice:
        raise GuardConfigError(
            f"the guard has {twice[0]!r} already; give the concept another name."
            if twice
            else "give pairs of a concept."
        )
    with output_lock(Path(out), nested=True) as folder:
        check_guard_folder(folder, overwrite, "pass overwrite=True")
        work = folder.with_name(folder.name + ".work")
        if start is not None:
            _require_same_model(start, pipe, config)
        claim(work, {**_plan(config, rows, start, pipe), **({"distinct": True} if distinct else {})})
        return _train(pipe, rows, folder, work, start, config, progress, log, keep_weak, distinct)


def _require_same_model(start: SafeRedirMany, pipe: Any, config: TrainConfig) -> None:
    """GuardError unless the guard was made for this model, weights and all, under the same settings of its text encoders."""
    changed = check_backbone(start.config.backbone or {}, backbone_fingerprint(pipe), start.method)
    if changed:
        raise GuardConfigError(
            f"the guard to start from was trained on other weights ({', '.join(changed)}), so concepts added on this model would "
            "not be its own; train all of them on this one."
        )
    require_trained_settings(start.config.training, text_settings(pipe, config.call), "the guard to start from")


def _plan(
    config: TrainConfig, rows: Mapping[str, Sequence[Pair]], start: SafeRedirMany | None, pipe: Any
) -> dict[str, Any]:
    """What the work folder belongs to."""
    digests = {concept: hash_pairs(of) for concept, of in rows.items()}
    known = None if start is None else {"concepts": start.config.concepts, "weights": weights_digest(start.network)}
    return {"config": asdict(config), "pairs": digests, "known": known, **model_facts(pipe)}


def _train(
    pipe: Any,
    rows: Mapping[str, Sequence[Pair]],
    out: Path,
    work: Path,
    start: SafeRedirMany | None,
    config: TrainConfig,
    progress: Progress,
    log: Callable[[dict[str, Any]], None] | None,
    keep_weak: bool,
    distinct: bool,
) -> SafeRedirMany:
    lengths = text_lengths(pipe, config.call, config.text_lengths)
    split = {concept: split_pairs(of, config.held_out, config.seed) for concept, of in rows.items()}
    for concept, sides in split.items():
        if min(sum(pair.unsafe is not None for pair in side) for side in sides) < MIN_PAIRS:
            raise GuardConfigError(f"{concept!r} has too few pairs; a side of the split needs at least {MIN_PAIRS}.")
    of_concepts: list[dict[str, Side]] = []
    benign: list[list[Benign]] = []
    telling = {concept: telling_words(of) for concept, of in rows.items()} if distinct else {}
    for number in (0, 1):  # training, held out
        of_side = {concept: both[number] for concept, both in split.items()}
        more = other_prompts(of_side, telling)
        with progress.task(("training", "held-out")[number] + " images", _count(of_side, config, number)) as advance:
            benign.append(_benign(pipe, of_side.values(), config, work, number, advance))
            of_concepts.append(
                {
                    concept: _side(pipe, of, more.get(concept, ()), lengths, config, work, number, advance)
                    for concept, of in of_side.items()
                }
            )
    others = [_others(sides, telling) if distinct else None for sides in of_concepts]
    network = _network(pipe, of_concepts[0], start, config)
    shared = {concept: benign[0][0].of(both[0]) for concept, both in split.items()}
    added = None if start is None else len(rows)
    fit_rows(network, of_concepts[0], shared, config, work, progress, log, added=added, others=others[0])
    results = {}
    count = len(network.config.concepts)
    benign_share, unsafe_share = config.contamination
    for concept, side in of_concepts[1].items():
        images, *short = (
            joined(unsafe, safe.of(split[concept][1]))
            for unsafe, safe in zip((side.images, *side.short), benign[1], strict=True)
        )
        if (held_out := others[1]) is not None:
            images = joined(images, held_out.of(concept))
        view: Any = OneConcept(network, concept)
        results[concept] = calibrate(
            view.eval(), side.text, images, config.false_positive_rate / count,
            contamination=(benign_share / count, unsafe_share), short=short,
        )  # fmt: skip
    network = without_joint(network)
    before = () if start is None else start.config.prompt_thresholds
    limits = torch.tensor([*before, *(result.thresholds["prompt"] for result in results.values())])
    for concept, side in of_concepts[1].items():
        results[concept].record["leads_into"] = leads_into(network, concept, side.text, limits)
    settings = _settings(pipe, network, results, start, config, rows, lengths)
    if not keep_weak:
        _require_telling(settings, results, work)
    guard = SafeRedirMany(settings, network)
    guard.save_pretrained(out)
    shutil.rmtree(work)
    return guard


def _require_telling(settings: SafeRedirManyConfig, names: Collection[str], work: Path) -> None:
    """GuardConfigError where the image side of a concept among `names` surely cannot tell it from the rest."""
    rows = {name: alone(settings, number) for number, name in enumerate(settings.concepts) if name in names}
    blind = {name: why for name, row in rows.items() if (why := blind_image_side(row)) is not None}
    if blind:
        named = "; ".join(f"of {name!r} {why}" for name, why in list(blind.items())[:MOST_NAMED])
        raise GuardConfigError(
            f"no guard was written: the image side of {len(blind)} of {len(rows)} concepts cannot tell them from the rest "
            f"on held-out images, {named}; give more pairs, more roll-outs or more steps, or write it all the same with --force "
            f"(keep_weak=True), which goes on from {work.name}."
        )


def _count(sides: Mapping[str, Sequence[Pair]], config: TrainConfig, number: int) -> int:
    """Images of one side: of every concept those that show it, and each benign prompt once."""
    count = config.held_out_rollouts if number else config.rollouts
    chosen = [rollout_prompts(of, count, config.seed) for of in sides.values()]
    return sum(len(of.unsafe) for of in chosen) + len({prompt for of in chosen for prompt in of.benign})


def _rolled(
    pipe: Any, prompts: Prompts, config: TrainConfig, work: Path, number: int, advance: Callable[[int], None],
    steps: int | None = None,
) -> ImageData:  # fmt: skip
    return generate_rollouts(
        pipe, prompts, steps=steps or config.rollout_steps, guidance_scales=_scales(config, number),
        seed=config.seed * 1_000_000 + 500_000 * number + (250_000 if prompts.benign else 0), batch=config.rollout_batch,
        call=config.call, view=config.image_input, cache=work, on_progress=advance,
    )  # fmt: skip


def _short_steps(pipe: Any, config: TrainConfig, number: int) -> list[int]:
    return short_steps(pipe, config.rollout_steps) if number else []


def _benign(
    pipe: Any,
    pairs: Iterable[Sequence[Pair]],
    config: TrainConfig,
    work: Path,
    number: int,
    advance: Callable[[int], None],
) -> list[Benign]:
    """Benign roll-outs, an image once whichever concepts have its prompt: the long ones, and of the held-out side short ones."""
    count = config.held_out_rollouts if number else config.rollouts
    chosen = [rollout_prompts(of, count, config.seed).benign for of in pairs]
    prompts = list(dict.fromkeys(prompt for of in chosen for prompt in of))
    some = list(dict.fromkeys(prompt for of in chosen for prompt in of[: SHORT_IMAGES // 2]))
    scales = len(_scales(config, number))
    long = _rolled(pipe, Prompts([], prompts), config, work, number, advance)
    short = [
        Benign(_rolled(pipe, Prompts([], some), config, work, number, lambda _: None, steps), _in_turns(some, scales))
        for steps in _short_steps(pipe, config, number)
    ]
    return [Benign(long, _in_turns(prompts, scales)), *short]


def _in_turns(prompts: Sequence[str], scales: int) -> list[str]:
    """Prompts in the order in which `generate_rollouts` has them."""
    return [prompt for turn in range(scales) for prompt in prompts[turn::scales]]


def _scales(config: TrainConfig, number: int) -> tuple[float, ...]:
    """Guidance scales of one side."""
    if not number:
        return (config.guidance_scale,)
    return config.calibration_scales or calibration_scales(config.guidance_scale)


def _side(
    pipe: Any, pairs: Sequence[Pair], others: Sequence[str], lengths: Sequence[int], config: TrainConfig, work: Path,
    number: int, advance: Callable[[int], None],
) -> Side:  # fmt: skip
    """One side of a concept; `others` are more prompts that do not ask for it, for the prompt verdict alone."""
    count = config.held_out_rollouts if number else config.rollouts
    prompts = Prompts(rollout_prompts(pairs, count, config.seed).unsafe, [])
    some = Prompts(prompts.unsafe[: SHORT_IMAGES // 2], [])
    short = [
        _rolled(pipe, some, config, work, number, lambda _: None, steps) for steps in _short_steps(pipe, config, number)
    ]
    images = _rolled(pipe, prompts, config, work, number, advance)
    text = encode_text(pipe, [*pairs, *(Pair(None, prompt) for prompt in others)], config.call, lengths)
    return Side(text, images, _in_turns(prompts.unsafe, len(_scales(config, number))), tuple(short))


def _others(sides: Mapping[str, Side], telling: Mapping[str, frozenset[str]]) -> Others:
    """The images of all concepts, for each other's."""
    images = joined(*(side.images for side in sides.values()))
    shown = [concept for concept, side in sides.items() for _ in side.prompts]
    return Others.of_images(images, shown, [prompt for side in sides.values() for prompt in side.prompts], telling)


def joined(first: ImageData, *rest: ImageData) -> ImageData:
    """The images of all, of the same steps."""
    parts = (first, *rest)
    scales = [part.scale for part in parts if part.scale is not None]
    return ImageData(
        torch.cat([part.frames for part in parts]), first.prompts.cat(*(part.prompts for part in rest)),
        torch.cat([part.label for part in parts]), first.t, torch.cat(scales) if len(scales) == len(parts) else None,
    )  # fmt: skip


def _network(pipe: Any, sides: Mapping[str, Side], start: SafeRedirMany | None, config: TrainConfig) -> Redirector:
    """An untrained network of the pipeline's sizes, or that of `start` with rows for the new concepts."""
    side = next(iter(sides.values()))
    first = side.text.unsafe
    if start is None:
        sizes = {
            "prompt_dim": first.prompt.shape[-1],
            "latent_channels": side.images.frames.shape[2],
            "pooled_dim": 0 if first.pooled is None else first.pooled.shape[-1],
            "exempt_bos": family_of(pipe).has_bos,
            "concepts": tuple(sides),
            "row_heads": True,
            "rank": RANK,
        }
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            return Redirector(RedirectorConfig.from_dict({**sizes, **config.network}))
    known, state = start.network.config, dict(start.network.state_dict())
    for number, _ in enumerate(sides):
        state = with_concept(state, len(known.concepts) + number, config.seed + number)
    network = Redirector(replace(known, concepts=(*known.concepts, *sides)))
    network.load_state_dict(state)
    return network


def fit_rows(
    network: Redirector,
    sides: Mapping[str, Side],
    benign: Mapping[str, ImageData],
    config: TrainConfig,
    work: Path,
    progress: Progress,
    log: Callable[[dict[str, Any]], None] | None,
    *,
    added: int | None = None,
    others: Others | None = None,
) -> None:
    """Optimise the network on its concepts' data, `AT_ONCE` concepts a step, in turn.

    `added`: only the rows of the last so many concepts learn; None: everything does. `others`: of half of the benign images.
    """
    device = next(network.parameters()).device
    trained = list(network.parameters() if added is None else network.heads.parameters())
    fixed = 0 if added is None else len(network.config.concepts) - added
    optimiser = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0 if added else 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps, config.learning_rate * 0.02)
    views: dict[str, Any] = {concept: OneConcept(network, concept) for concept in sides}
    checkpoint, first = work / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]
    names = list(sides)
    share = max(4, config.batch // min(AT_ONCE, len(names)))
    network.train()
    with progress.task("training", config.steps, first) as advance:
        for step in range(first, config.steps):
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            losses = []
            for turn in range(min(AT_ONCE, len(names))):
                number = step * min(AT_ONCE, len(names)) + turn
                name = names[number % len(names)]
                losses.append(
                    _loss(
                        views[name],
                        sides[name],
                        benign[name],
                        share,
                        number // len(names),
                        step,
                        config,
                        generator,
                        device,
                        None if others is None else partial(others.batch, name),
                    )
                )
            loss = torch.stack(losses).mean()
            if not torch.isfinite(loss):
                raise FloatingPointError(f"The loss is not finite at step {step}; lower the learning rate.")
            loss.backward()
            if added is not None:
                for parameter in trained:
                    if parameter.grad is not None:
                        parameter.grad[:fixed] = 0
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            network.zero_grad()
            advance(1, f"training loss {loss.item():.3f}")
            if (step + 1) % config.evaluate_every == 0 or step + 1 == config.steps:
                if log is not None:
                    log({"step": step + 1, "loss": loss.item()})
                state = {
                    "network": network.state_dict(), "optimiser": optimiser.state_dict(),
                    "schedule": schedule.state_dict(), "step": step + 1,
                }  # fmt: skip
                with replacing(checkpoint) as temporary:
                    torch.save(state, temporary)
    network.eval()


def _loss(
    view: Any, side: Side, benign: ImageData, rows: int, visit: int, step: int, config: TrainConfig, generator: torch.Generator,
    device: torch.device, of_others: Callable[[int, torch.Generator], ImageBatch] | None,
) -> torch.Tensor:  # fmt: skip
    """The loss of one concept on `rows` prompts and images, half of each benign; `of_others` gives half of the benign images."""
    words = text_batch(side.text.lengths[visit % len(side.text.lengths)], rows, generator).to(device)
    halves = [image_batch(side.images, rows // 2, generator)]
    if of_others is not None:
        halves.append(of_others(rows // 4, generator))
    halves.append(image_batch(benign, rows - sum(len(half.label) for half in halves), generator))
    shown = ImageBatch(
        torch.cat([half.frames for half in halves]), torch.cat([half.t for half in halves]),
        halves[0].prompts.cat(*(half.prompts for half in halves[1:])), torch.cat([half.label for half in halves]),
    ).to(device)  # fmt: skip
    terms = redirection_terms(view, *words, teacher_forcing=step < config.steps // 3)
    given, prompts = words.given, shown.prompts
    of_images: list[torch.Tensor]
    if view.config.has_joint:
        of_images = [*view.image_and_joint_logits(shown.frames, shown.t, prompts.prompt, prompts.mask, prompts.pooled)]
    else:
        of_images = [view.image_logits(shown.frames, shown.t)]
    terms["classification"] = classification_term(
        (view.prompt_logits(given.prompt, given.mask, given.pooled), words.label),
        *((logits, shown.label) for logits in of_images),
    )
    return total(terms, config.loss)


def _settings(
    pipe: Any, network: Redirector, results: Mapping[str, Any], start: SafeRedirMany | None, config: TrainConfig,
    rows: Mapping[str, Sequence[Pair]], lengths: Sequence[int],
) -> SafeRedirManyConfig:  # fmt: skip
    """The guard's config: thresholds of the concepts that were there, then of the new ones."""
    old = None if start is None else start.config

    def thresholds(name: str) -> tuple[float, ...]:
        before = (
            ()
            if old is None
            else getattr(old, f"{name}_thresholds") or (old.image_thresholds if name == "last" else ())
        )
        return (*before, *(result.thresholds[name] for result in results.values()))

    record = {
        key: value for key, value in asdict(config).items() if key not in ("network", "loss", "calibration_scales")
    }
    added = {concept: sum(pair.unsafe is not None for pair in of) for concept, of in rows.items()}
    return SafeRedirManyConfig(
        concept=", ".join(network.config.concepts),
        backbone=backbone_fingerprint(pipe),
        network=network.config.to_dict(),
        prompt_thresholds=thresholds("prompt"),
        image_thresholds=thresholds("image"),
        last_thresholds=thresholds("last"),
        calibration={
            **({} if old is None else old.calibration),
            **{concept: {**result.record, "measured": result.measured} for concept, result in results.items()},
        },
        training={
            **record, "loss": config.loss.to_dict(), **text_record(pipe, config.call, lengths),
            "pairs": {**({} if old is None else old.training.get("pairs", {})), **added},
        },
    )  # fmt: skip
