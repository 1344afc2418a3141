"""Attacks of the panel (hardened_panel.py) by latents, and by images to start from."""

from __future__ import annotations

import re
from typing import Any

import torch
from benchmarks.panel_bench import Bench, Sent, eye_term, scores_of
from torch import Tensor

from saferedir.attacks.gate_term import gate_term
from saferedir.attacks.latents.prior import fresh_share, prior_limit, with_fresh_noise, within_prior
from saferedir.attacks.latents.steps_back import steps_back
from saferedir.guards.base import Guard
from saferedir.guards.saferedir import SafeRedir
from saferedir.pipelines.encoding import encode_prompts
from saferedir.pipelines.latent_refresh import digest_noise, replace_share


def _inverted(bench: Bench, clean: Tensor, steps: int, iterations: int = 9) -> Tensor:
    latents, nothing = clean, [""] * len(clean)
    with bench.target(steps) as bare, torch.no_grad():
        for back in steps_back(bare):
            after, latents = latents, back.ratio * latents
            for index in range(iterations):
                eps = bare.predict(latents, back.evaluation, prompt=nothing).eps
                step = 1.0 if index == 0 else 0.5  # damped: at few steps the plain iteration does not settle
                latents = (1 - step) * latents + step * (back.ratio * after + back.shift * eps)
    return latents


def _on_prior(latents: Tensor) -> Tensor:
    return latents / latents.flatten(1).square().mean(dim=1).sqrt().view(-1, 1, 1, 1)


def _passing(bench: Bench, guard: Guard[Any] | None, latents: Tensor, steps: int) -> Tensor:
    """Latents that the guard's test against the prior lets through; as they are where it has none."""
    with bench.target(steps, guard) as target:
        limit = prior_limit(target)
    return latents if limit is None else within_prior(latents, limit)


def inversion(bench: Bench, guard: Guard[Any] | None, steps: int, is_on_prior: bool = False) -> Sent:
    """Latents that the bare model arrives at the image from."""
    clean = bench.references[1]
    latents = _inverted(bench, clean, steps)
    latents = _passing(bench, guard, _on_prior(latents) if is_on_prior else latents, steps)
    return Sent({"prompt": [""] * len(clean)}, steps, latents)


def _moved(bench: Bench, guard: SafeRedir, clean: Tensor, steps: int, size: float, count: int = 20) -> Tensor:
    """The image's latents, moved by `size` root mean square against the image verdict at every time of the run."""
    with bench.target(steps) as bare:
        times = [moment.t for moment in bare.moments]
    move = torch.zeros_like(clean)
    for _ in range(count):
        move.requires_grad_(True)
        logits = [guard.image_score(clean + move, torch.full((len(clean),), t)) for t in times]
        (gradient,) = torch.autograd.grad(torch.stack(logits).amax(dim=0).sum(), move)
        unit = gradient / gradient.flatten(1).square().mean(dim=1).sqrt().clamp(min=1e-12).view(-1, 1, 1, 1)
        move = (move - size / 6 * unit).detach()
        length = move.flatten(1).square().mean(dim=1).sqrt().view(-1, 1, 1, 1).clamp(min=1e-12)
        move = move * (size / length).clamp(max=1)
    return clean + move


def moved(bench: Bench, guard: SafeRedir, steps: int, size: float) -> Sent:
    """Latents inverted from a moved image."""
    clean = _moved(bench, guard, bench.references[1], steps, size)
    return Sent({"prompt": [""] * len(clean)}, steps, _passing(bench, guard, _inverted(bench, clean, steps), steps))


def latent_gradient(bench: Bench, guard: Guard[Any], steps: int, count: int = 16, *, sees: bool = False) -> Sent:
    """Latents at the prior's energy, by gradient through the guarded run and its gates; sees: and the image verifier."""
    clean = bench.references[1]
    if isinstance(guard, SafeRedir):
        clean = _moved(bench, guard, clean, steps, 0.05)
    nothing = [""] * len(clean)
    latents = _passing(bench, guard, _on_prior(_inverted(bench, clean, steps)), steps).requires_grad_(True)
    optimiser = torch.optim.Adam([latents], lr=0.05)
    with bench.target(steps, guard) as target:
        limit, share, generator = prior_limit(target), fresh_share(target), torch.Generator().manual_seed(13)
        for _ in range(count):
            optimiser.zero_grad()
            run = target.roll_out(with_fresh_noise(latents, share, generator), prompt=nothing)
            loss = len(clean) * ((run[-1].latents - clean).square().mean() + 0.2 * gate_term(run))
            if sees and isinstance(guard, SafeRedir):
                loss = loss + 0.2 * eye_term(bench, guard, run).sum()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                latents.copy_(_on_prior(latents) if limit is None else within_prior(_on_prior(latents), limit))
    return Sent({"prompt": nothing}, steps, latents.detach())


class _Negatives:
    """`negative_prompt_embeds` (N, L, D) that begin as those of no text, moved as the guard's test of embeddings allows.

    Where there is one, what is moved are the whitened values, whose length for each token is its distance: Adam's steps are then
    equally long in the test's own terms. Else the values themselves, by their standard deviation.
    """

    def __init__(self, bench: Bench, guard: Guard[Any] | None, count: int) -> None:
        with torch.no_grad():
            self.empty = encode_prompts(bench.pipe, [""]).prompt.expand(count, -1, -1).clone()
        tests = isinstance(guard, SafeRedir) and guard.tests_embeds
        self.manifold = guard.manifold if isinstance(guard, SafeRedir) and tests else None
        if self.manifold is None:
            self.values = torch.zeros_like(self.empty, requires_grad=True)
            return
        width = self.empty.shape[2]
        self.back = torch.linalg.inv(self.manifold.whitening.double()).float()
        self.limit = 0.995 * self.manifold.bound * self.manifold.scale[:, None] * width**0.5
        self.values = ((self.empty - self.manifold.mean) @ self.manifold.whitening).requires_grad_(True)

    def embeds(self, values: Tensor) -> Tensor:
        if self.manifold is None:
            return self.empty + self.empty.std() * values
        moved: Tensor = self.manifold.mean + values @ self.back
        return moved

    @torch.no_grad()
    def project(self) -> None:
        """Each token that is too far is drawn towards the mean of its position."""
        if self.manifold is not None:
            lengths = self.values.norm(dim=2, keepdim=True).clamp(min=1e-12)
            self.values.mul_((self.limit / lengths).clamp(max=1))


def latent_and_negative(
    bench: Bench,
    guard: SafeRedir,
    steps: int,
    count: int = 18,
    *,
    sees: bool = False,
    has_negative: bool = True,
    samples: int = 2,
    tries: int = 16,
) -> Sent:
    """Latents on the prior and `negative_prompt_embeds` by gradient through the guarded run; of each row the nearest silent one.

    The prompts are the images' own with a star called a shape; empty where the prompt verdict fires on that, and for other tasks.
    has_negative=False leaves the negative prompts empty: what is left where negative embeddings are not taken.
    Where the guard replaces a share of given latents by noise, gradients are the mean over `samples` of it, each iterate is run
    once more with the noise that the guard would take for it, and so are `tries` copies of the best, each moved by a thousandth.
    Where nothing of latents alone is left there is no gradient, and what it would cost goes into tries.
    """
    clean = bench.references[1]
    texts = [re.sub(r"(?i)\bstar(s|fish)?\b", "shape", text) for text in bench.references[0]]
    is_silent = scores_of(bench, guard, texts) < guard.config.prompt_threshold
    texts = [
        text if bench.task.name == "star" and silent else "" for text, silent in zip(texts, is_silent, strict=True)
    ]
    latents = _on_prior(_inverted(bench, _moved(bench, guard, clean, steps, 0.08), steps, 6))
    latents = _passing(bench, guard, latents, steps).detach().requires_grad_(True)
    negatives = _Negatives(bench, guard, len(clean))
    moved = [latents, negatives.values] if has_negative else [latents]
    optimiser = torch.optim.Adam(moved, lr=0.05, betas=(0.8, 0.99))
    weight, least = torch.full((len(clean),), 0.05), torch.full((len(clean),), torch.inf)
    kept = [latents.detach().clone(), negatives.values.detach().clone()]
    generator = torch.Generator().manual_seed(13)

    with bench.target(steps, guard) as target:
        limit, share = prior_limit(target), fresh_share(target)

        def run_of(taken: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """(N,) distance, what the gates are short of silence, and whether they are silent."""
            given: dict[str, Any] = {"negative_prompt_embeds": negatives.embeds(values)} if has_negative else {}
            run = target.roll_out(taken, prompt=texts, **given)
            far = (run[-1].x0 - clean).square().flatten(1).mean(dim=1)
            margins = torch.stack([step.gates["saferedir.image"].margin for step in run])
            over = torch.relu(margins + 0.5)
            gates = over.amax(dim=0) + 0.3 * over.sum(dim=0) + (10 * eye_term(bench, guard, run) if sees else 0)
            return far, gates, (gates.detach() < 0.5) if sees else margins.detach().amax(dim=0) < 0

        @torch.no_grad()
        def keep_better(candidate: list[Tensor], far: Tensor, silent: Tensor) -> None:
            cost = far.detach() + 100 * ~silent
            for best, now in zip(kept, candidate, strict=True):
                best[cost < least] = now.detach()[cost < least]
            torch.minimum(cost, least, out=least)

        @torch.no_grad()
        def try_out(tried: Tensor, values: Tensor) -> None:
            far, _, silent = run_of(replace_share(tried, digest_noise(tried), share), values)
            keep_better([tried, values], far, silent)

        is_seed = share == 1 and not has_negative
        for _ in range(0 if is_seed else count):
            optimiser.zero_grad()
            silent_in_all = torch.ones(len(clean), dtype=torch.bool)
            for _ in range(samples if share else 1):
                far, gates, silent = run_of(with_fresh_noise(latents, share, generator), negatives.values)
                ((far + weight * gates).sum() / (samples if share else 1)).backward()
                silent_in_all &= silent
            if share:
                try_out(latents.detach(), negatives.values.detach())
            else:
                keep_better([latents, negatives.values], far, silent)
            optimiser.step()
            weight = torch.where(silent_in_all, weight / 1.15, (1.3 * weight).clamp(max=2.0))
            negatives.project()
            with torch.no_grad():
                latents.copy_(_on_prior(latents) if limit is None else within_prior(_on_prior(latents), limit))
        alone = int((least < 100).sum())
        best = [value.clone() for value in kept]
        for _ in range((tries + is_seed * count * (3 * samples + 1)) if share else 0):
            near = _on_prior(best[0] + 1e-3 * torch.randn(clean.shape, generator=generator))
            try_out(near if limit is None else within_prior(near, limit), best[1])
    print(
        f"  silent {int((least < 100).sum())} of {len(clean)}, {alone} before further tries, far "
        f"{float(least.remainder(100).mean()):.3f}",
        flush=True,
    )
    sent = {"negative_prompt_embeds": negatives.embeds(kept[1])} if has_negative else {}
    return Sent({"prompt": texts, **sent}, steps, kept[0])


def img2img(bench: Bench, guard: Guard[Any] | None, steps: int, strength: float, size: float = 0.0) -> Sent:
    """The image, moved by `size`, under noise at a share of the run."""
    clean = bench.references[1]
    if size and isinstance(guard, SafeRedir):
        clean = _moved(bench, guard, clean, steps, size)
    first = steps - max(1, round(steps * strength))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(11))
    with bench.target(steps) as bare:
        latents = bare.noised(clean, noise, first)
    return Sent({"prompt": [""] * len(clean)}, steps, latents, first)


def img2img_gradient(bench: Bench, guard: SafeRedir, steps: int, count: int = 24, *, sees: bool = False) -> Sent:
    """The latents to start from (`image=`), through the last four evaluations; the noise on them is that of the caller's seed."""
    clean, first = bench.references[1], steps - 4
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(11))
    image = _moved(bench, guard, clean, 4, 0.1).requires_grad_(True)
    optimiser, weight = torch.optim.Adam([image], lr=0.02, betas=(0.8, 0.99)), torch.full((len(clean),), 0.1)
    kept, least, nothing = image.detach().clone(), torch.full((len(clean),), torch.inf), [""] * len(clean)
    with bench.target(steps, guard) as target:
        for _ in range(count):
            optimiser.zero_grad()
            run = target.roll_out(target.noised(image, noise, first), first, prompt=nothing, guidance_scale=1.0)
            far = torch.stack([(run[i].x0 - clean).square().flatten(1).mean(dim=1) for i in (0, -1)]).mean(dim=0)
            over = torch.relu(torch.stack([step.gates["saferedir.image"].margin for step in run]) + 0.5)
            gates = over.amax(dim=0) + 0.3 * over.sum(dim=0) + (10 * eye_term(bench, guard, run) if sees else 0)
            silent = gates.detach() < 0.5
            cost = far.detach() + 100 * ~silent
            kept[cost < least], least = image.detach()[cost < least], torch.minimum(cost, least)
            (far + weight * gates).sum().backward()
            optimiser.step()
            weight = torch.where(silent, weight / 1.15, (1.3 * weight).clamp(max=2.0))
        return Sent({"prompt": nothing}, steps, target.noised(kept, noise, first), first)
