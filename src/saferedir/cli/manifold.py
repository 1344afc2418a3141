"""`saferedir guards manifold`: a guard folder with statistics of the text encoder, to test embeddings that callers give."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saferedir.cli.common import console, escape, load_model, named_values, scaled_loras
from saferedir.cli.options import MAX_SEED, Lora, Revision, Variant
from saferedir.cli.output import MEGABYTE, check_guard_folder, check_space, holds_out
from saferedir.cli.pairs import read_captions


@holds_out
def manifold(
    guard: Annotated[str, typer.Argument(metavar="GUARD", help="A packaged SafeRedir guard, a folder, or a hub id.")],
    prompts: Annotated[Path, typer.Option(metavar="FILE", help="Prompts of every kind that users write, one a line.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the guard with the statistics.")],
    model: Annotated[
        str, typer.Option(metavar="ID", help="The checkpoint: pictoworld, a diffusers folder, or a hub id.")
    ] = "pictoworld",
    lora: Lora = None,
    random_texts: Annotated[
        int, typer.Option("--random", min=0, help="Random token sequences to add, so that unusual prompts pass.")
    ] = 1024,
    false_positives: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of texts like these that may exceed the bound.")
    ] = 0.005,
    call: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Arguments of the pipeline's call that change embeddings, such as clip_skip=1."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the random sequences.")] = 0,
    variant: Variant = None,
    revision: Revision = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace the guard at --out.")] = False,
) -> None:
    """Add statistics of the text encoder to a SafeRedir guard, and have it refuse embeddings that no text makes.

    Encodes the prompts and random token sequences with that checkpoint, and writes the guard with what it found and with
    embeds_test set to refuse; weights and thresholds stay. Only embeddings that a caller gives are tested, never a text.

    Example:  `saferedir guards manifold pictoworld/star-usual --prompts prompts.txt --out runs/star-strict`
    """
    check_guard_folder(out, force)
    loras = scaled_loras(lora or [])
    check_space(out, 256 * MEGABYTE)
    from saferedir.guards.saferedir import SafeRedir
    from saferedir.training.saferedir.manifold import measure_manifold

    texts = read_captions(prompts)
    chosen = SafeRedir.from_pretrained(guard)
    pipe = load_model(model, device=device, variant=variant, revision=revision, loras=loras)
    with console.status("encoding"):
        statistics = measure_manifold(
            pipe, texts, random_texts=random_texts, false_positives=false_positives,
            call=named_values(call or [], "--call"), seed=seed,
        )  # fmt: skip
    chosen.manifold = statistics
    chosen.with_settings(embeds_test="refuse").save_pretrained(out)
    console.print(f"Distance bound {float(statistics.bound):.2f}, from {len(set(texts))} prompts.", highlight=False)
    console.print(f"Guard written to {escape(str(out))}", soft_wrap=True, highlight=False)
