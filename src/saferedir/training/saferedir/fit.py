"""The optimisation of a redirector for one concept: batches, adversarial moves, checkpoints, the best of them.

Implements the loss of docs/methods/saferedir.md (9) to (14); `many.fit_rows` is the same for many concepts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from saferedir.errors import GuardConfigError
from saferedir.guards.saferedir.anchors import without_padding
from saferedir.guards.saferedir.network import Redirector
from saferedir.training.saferedir.adversarial import moved_frames, moved_prompts
from saferedir.training.saferedir.batches import ImageData, TextBatch, TextData, image_batch, text_batch
from saferedir.training.saferedir.calibration import evaluate
from saferedir.training.saferedir.dataset import moved_tokens
from saferedir.training.saferedir.losses import classification_term, redirection_terms, total
from saferedir.training.saferedir.train_config import TrainConfig
from saferedir.utils.files import replacing
from saferedir.utils.progress import Progress

#: one batch in this many is from the roll-outs of each of `train.BRIEF_STEPS`
BRIEF_EVERY = 9


def fit_redirector(
    network: Redirector,
    text: TextData,
    images: ImageData,
    held_text: TextData,
    held_images: ImageData,
    config: TrainConfig,
    work: Path,
    progress: Progress,
    log: Callable[[dict[str, Any]], None] | None,
    *,
    on_cpu: bool = False,
    is_warm: bool = False,
    brief: Sequence[ImageData] = (),
) -> dict[str, Any]:
    """Optimise; returns the checkpoint with the best held-out score: mean AUROC of the two verdicts - distance left.

    `is_warm`: whether the network begins as that of a guard, so that no masks are forced. `brief`: roll-outs of fewer steps, each
    of which one batch in `BRIEF_EVERY` is from. Held-out data are not moved, so under adversarial moves the last checkpoint is
    kept in place of the best one.
    """
    accelerator = Accelerator(cpu=on_cpu)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps, config.learning_rate * 0.02)
    model, optimiser, schedule = accelerator.prepare(network, optimiser, schedule)
    checkpoint, start = work / "checkpoint.pt", 0
    best: dict[str, Any] = {"step": 0, "score": -math.inf, "network": {}}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        start, best = state["step"], state["best"]
    device = accelerator.device
    with progress.task("training", config.steps, start) as advance:
        for step in range(start, config.steps):
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            words = text_batch(text.lengths[step % len(text.lengths)], config.batch, generator).to(device)
            chosen = step % BRIEF_EVERY
            data = brief[chosen] if chosen < len(brief) else images
            views = image_batch(data, config.batch, generator, config.final_frames).to(device)
            model.train()
            words, mask_target = _attacked_words(network, words, config, generator)
            frames = views.frames
            if config.image_moves:
                how = (config.image_moves, config.move_steps, generator)
                frames = moved_frames(network, frames, views.t, views.label, *how)
            given, shown = words.given, views.prompts
            teacher_forcing = step < config.steps // 3 and not is_warm
            terms: dict[str, Tensor] = {}
            if config.loss.moves_prompts:
                terms = redirection_terms(network, *words, teacher_forcing=teacher_forcing, mask_target=mask_target)
            image, joint = network.image_and_joint_logits(frames, views.t, shown.prompt, shown.mask, shown.pooled)
            terms["classification"] = classification_term(
                (network.prompt_logits(given.prompt, given.mask, given.pooled), words.label),
                (image, views.label),
                (joint, views.label),
            )
            loss = total(terms, config.loss)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"The loss is not finite at step {step}; lower the learning rate.")
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            advance(1, f"training loss {loss.item():.3f}")
            if (step + 1) % config.evaluate_every == 0 or step + 1 == config.steps:
                network.eval()
                scores = evaluate(network, held_text, held_images)
                if not all(math.isfinite(value) for value in scores.values()):
                    raise GuardConfigError(
                        f"The held-out side cannot be evaluated ({scores}); give more pairs and benign prompts, "
                        "or more roll-outs."
                    )
                left = [scores[name] for name in ("distance", "pooled_distance") if name in scores]
                mean = (scores["prompt_auroc"] + scores["image_auroc"]) / 2 - sum(left) / len(left)
                if mean > best["score"] or config.image_moves or config.prompt_moves:
                    weights = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
                    best = {"step": step + 1, "score": mean, "network": weights}
                if log is not None:
                    log({"step": step + 1, "loss": loss.item(), **{k: v.item() for k, v in terms.items()}, **scores})
                state = {
                    "network": network.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "schedule": schedule.state_dict(),
                    "step": step + 1,
                    "best": best,
                }
                with replacing(checkpoint) as temporary:
                    torch.save(state, temporary)
    return best


def _attacked_words(
    network: Redirector, words: TextBatch, config: TrainConfig, generator: torch.Generator
) -> tuple[TextBatch, Tensor | None]:
    """The prompts, moved by an attack in every second row of each side, and the mask target of those that were not moved."""
    if not config.prompt_moves:
        return words, None
    given = words.given
    target = moved_tokens(given.prompt, without_padding(words.wanted), given.mask)
    chosen = torch.arange(0, len(words.label), 2, device=words.label.device)
    moved = moved_prompts(
        network,
        given.rows(chosen),
        target[chosen],
        words.label[chosen],
        config.prompt_moves,
        config.move_steps,
        generator,
    )
    prompt = given.prompt.index_put((chosen,), moved.prompt)
    benign = (words.label == 0).view(-1, 1, 1)
    wanted = words.wanted._replace(prompt=torch.where(benign, prompt, words.wanted.prompt))
    return TextBatch(given._replace(prompt=prompt), wanted, words.label), target
