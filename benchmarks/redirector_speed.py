"""How many times faster the redirector is than the architecture that the authors of SafeRedir released; prints a table.

Run: python benchmarks/redirector_speed.py
Both at the sizes of Stable Diffusion 1.5 (77 x 768 embeddings, 4 x 64 x 64 latents), float32, random weights: the time does
not depend on them. A step is what each asks its network for in one of 50: the released one everything at every check, ours the
image verdict, and once an image the prompt verdict and, where it fires, the redirection. CPU seconds; the calls take turns, and
the ratio is the median over rounds with a bootstrap interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from benchmarks.concepts import interleaved, interval, network

from saferedir.guards.saferedir.network import Redirector, RedirectorConfig
from saferedir.guards.saferedir.reference import ReferenceRedirector

STEPS = 50


def calls_of(model: Redirector, batch: int, prefix: str) -> dict[str, Callable[[], object]]:
    """The three things that a guard asks its network for."""
    embeds, x0 = torch.randn(batch, 77, 768), torch.randn(batch, 4, 64, 64)
    chosen = torch.zeros(batch, 4, dtype=torch.long) if model.config.row_heads else None
    return {
        f"{prefix} image": lambda: model.image_logits(x0, 500.0),
        f"{prefix} prompt": lambda: model.prompt_logits(embeds),
        f"{prefix} redirection": lambda: model.redirection(embeds, chosen=chosen),
    }


@torch.no_grad()
def table(batch: int, rounds: int) -> list[str]:
    torch.manual_seed(0)
    released = ReferenceRedirector().eval()
    one = Redirector(RedirectorConfig(prompt_dim=768)).eval()
    latent, pair, t = torch.randn(batch, 4, 64, 64), torch.randn(2 * batch, 77, 768), torch.full((batch,), 500.0)
    calls: dict[str, Callable[[], object]] = {"released": lambda: released(latent, pair, t)}
    kinds = {"one concept": one, "100 concepts": network(100)}
    for name, model in kinds.items():
        calls |= calls_of(model, batch, name)
    seconds = dict(zip(calls, interleaved(dict(enumerate(calls.values())), rounds).T, strict=True))
    lines = []
    for name in kinds:
        image, prompt, redirection = (seconds[f"{name} {part}"] for part in ("image", "prompt", "redirection"))
        for run, step in (
            ("benign run", image + prompt / STEPS),
            ("firing run", image + (prompt + redirection) / STEPS),
        ):
            middle, low, high = interval(seconds["released"] / step)
            lines.append(
                f"| {name}, {run} | {batch} | {1e3 * np.median(step):.2f} | {1e3 * np.median(seconds['released']):.1f} | "
                f"{middle:.1f} [{low:.1f}, {high:.1f}] |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    arguments = parser.parse_args()
    print(f"{arguments.rounds} rounds, {torch.get_num_threads()} threads")
    print("| redirector | images | ms a step | released, ms a check | times faster [95 %] |\n|---|---|---|---|---|")
    for batch in arguments.batches:
        print("\n".join(table(batch, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
