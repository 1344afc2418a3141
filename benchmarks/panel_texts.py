"""Attacks of the panel (hardened_panel.py) by texts and by embeddings."""

from __future__ import annotations

import random
from typing import Any

import torch
from benchmarks.panel_bench import Bench, Sent, eye_term, scores_of
from torch import Tensor

from saferedir.attacks.gate_term import gate_term
from saferedir.guards.base import Guard
from saferedir.guards.saferedir import SafeRedir
from saferedir.pictoworld.phrases import misspelt
from saferedir.pipelines.encoding import encode_prompts
from saferedir.target import SoftPrompt, Target
from saferedir.target.soft_prompt import reading
from saferedir.training.saferedir.calibration import prompt_scores

# ------------------------------------------------------------------ text


def plain(bench: Bench, guard: Guard[Any] | None, steps: int) -> Sent:
    """The prompts as they are."""
    return Sent({"prompt": bench.references[0]}, steps)


def typos(bench: Bench, guard: SafeRedir, steps: int) -> Sent:
    """The first of 30 misspellings below the prompt threshold, or the one of the lowest score."""
    chosen = []
    for number, text in enumerate(bench.references[0]):
        rng = random.Random(f"panel/{number}")
        tries = [misspelt(text, 1 + attempt % 3, rng) for attempt in range(30)]
        scores = scores_of(bench, guard, tries)
        below = (scores < guard.config.prompt_threshold).nonzero()[:, 0].tolist()
        chosen.append(tries[below[0] if below else int(scores.argmin())])
    return Sent({"prompt": chosen}, steps)


def lexicon(bench: Bench, guard: SafeRedir, steps: int) -> Sent | None:
    """Combinations that the prompt verdict misses."""
    texts, encoded = bench.lexicon
    scores = prompt_scores(guard.network, encoded)
    missed = [text for text, score in zip(texts, scores.tolist(), strict=True) if score < guard.config.prompt_threshold]
    print(f"  lexicon: prompt verdict misses {len(missed)} of {len(texts)}", flush=True)
    return Sent({"prompt": random.Random(0).sample(missed, min(bench.n, len(missed)))}, steps) if missed else None


# ------------------------------------------------------------------ embeddings


def _embeds(bench: Bench) -> Tensor:
    with torch.no_grad():
        return encode_prompts(bench.pipe, bench.references[0]).prompt.clone()


def _silence(guard: SafeRedir, embeds: Tensor) -> Tensor:
    """(N,) how far prompt verdict, redirection and the test of embeddings are from silent."""
    redirection = guard.network.redirection(embeds)
    strength = (redirection.mask * redirection.alpha[..., 0])[:, 0, 1:]
    score = guard.network.prompt_logits(embeds)[:, 0]
    term: Tensor = (
        torch.relu(score - guard.config.prompt_threshold + 0.5) + 2 * strength.amax(dim=1) + strength.mean(dim=1)
    )
    if guard.tests_embeds and guard.manifold is not None:
        term = term + 5 * torch.relu(guard.manifold.distance(embeds) / guard.manifold.bound - 0.97)
    return term


@torch.no_grad()
def _within_manifold(guard: Guard[Any], start: Tensor, moved: Tensor) -> Tensor:
    """As far on the way from `start` to `moved` as the test of embeddings lets through, row by row."""
    if not isinstance(guard, SafeRedir) or not guard.tests_embeds or guard.manifold is None:
        return moved
    low, high = torch.zeros(len(start)), torch.ones(len(start))
    passes = guard.manifold.distance(moved) <= 0.995 * guard.manifold.bound
    for _ in range(12):
        share = (low + high) / 2
        tried = start + share.view(-1, 1, 1) * (moved - start)
        inside = guard.manifold.distance(tried) <= 0.995 * guard.manifold.bound
        low, high = torch.where(inside, share, low), torch.where(inside, high, share)
    return start + torch.where(passes, 1.0, low).view(-1, 1, 1) * (moved - start)


def soft_network(bench: Bench, guard: SafeRedir, steps: int, count: int = 150) -> Sent:
    """Embeddings near those of the prompt, on which the guard's text side is silent."""
    start = _embeds(bench)
    size = start.std()
    change = torch.zeros_like(start, requires_grad=True)
    free = torch.ones(start.shape[1])
    free[0] = 0
    optimiser = torch.optim.Adam([change], lr=0.03)
    for _ in range(count):
        optimiser.zero_grad()
        moved = start + size * free[None, :, None] * change
        loss = _silence(guard, moved) + 0.5 * change.square().mean(dim=(1, 2))
        loss.sum().backward()
        optimiser.step()
    moved = (start + size * free[None, :, None] * change).detach()
    return Sent({"prompt_embeds": _within_manifold(guard, start, moved)}, steps)


def soft_denoiser(
    bench: Bench, guard: Guard[Any], steps: int, count: int = 30, *, of_tokens: bool = False, sees: bool = False
) -> Sent:
    """Embeddings that bring the bare model's prediction back through the guard, its gates shut.

    of_tokens: those that the text encoder reads, in place of what it says. sees: through the image verifier, too.
    """
    start, (texts, clean) = _embeds(bench), bench.references
    generator = torch.Generator().manual_seed(7)
    with bench.target(steps) as bare, torch.no_grad():
        levels = list(range(len(bare.moments)))
        noises = [torch.randn(clean.shape, generator=generator) for _ in levels]
        wanted = [bare.predict(bare.noised(clean, noises[i], i), i, prompt=texts).eps for i in levels]
    change = torch.zeros_like(start, requires_grad=True)
    optimiser, weight, size = torch.optim.Adam([change], lr=0.05), 0.1, start.std()
    free = torch.ones(start.shape[1])
    free[0] = 0
    ids = None
    with bench.target(steps, guard) as target:
        if of_tokens:
            ids = target.text_encoders[0].ids(texts)
            tokens = target.embed(ids).detach()
            size = tokens.std()
            change = torch.zeros_like(tokens, requires_grad=True)
            optimiser = torch.optim.Adam([change], lr=0.1)
        for step in range(count):
            i = int(torch.randint(len(levels), (1,), generator=generator))
            optimiser.zero_grad()
            moved = size * free[None, :, None] * change
            given: dict[str, Any] = {"prompt_embeds": start + moved}
            if ids is not None:
                given = {"prompt_embeds": _read(bench, target, texts, SoftPrompt(ids, tokens + moved))}
            prediction = target.predict(target.noised(clean, noises[i], i), i, **given)
            gates = gate_term([prediction])
            loss = len(clean) * ((prediction.eps - wanted[i]).square().mean() + weight * gates)
            if sees and isinstance(guard, SafeRedir):
                loss = loss + weight * eye_term(bench, guard, [prediction]).sum()
            if isinstance(guard, SafeRedir) and guard.tests_embeds and guard.manifold is not None:
                distance = guard.manifold.distance(given["prompt_embeds"])
                loss = loss + 0.5 * torch.relu(distance / guard.manifold.bound - 0.97).sum()
            loss.backward()
            optimiser.step()
            weight = min(2 * weight, 100.0) if float(gates.detach()) > 0 and step % 10 == 9 else weight
        with torch.no_grad():
            moved = size * free[None, :, None] * change
            sent = start + moved if ids is None else _read(bench, target, texts, SoftPrompt(ids, tokens + moved))
    return Sent({"prompt_embeds": _within_manifold(guard, start, sent.detach())}, steps)


def _read(bench: Bench, target: Target, texts: list[str], soft: SoftPrompt) -> Tensor:
    """What the text encoder makes of token embeddings."""
    recording = vars(bench.pipe).pop("encode_prompt", None)  # else the guard would take them for text
    try:
        with reading(target.text_encoders, [soft]):
            return encode_prompts(bench.pipe, texts).prompt
    finally:
        if recording is not None:
            vars(bench.pipe)["encode_prompt"] = recording
