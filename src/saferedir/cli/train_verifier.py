"""`saferedir train verifier`: a verifier of finished images for a guard's folder, trained apart from the guard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saferedir.cli.common import console, load_model, named_values, new_table, percent_cell, progress_bar
from saferedir.cli.options import MAX_SEED, ModelVariant, Revision
from saferedir.cli.output import MEGABYTE, check_space
from saferedir.cli.stopping import GOES_ON, on_stop


def verifier(
    guard: Annotated[Path, typer.Option(metavar="DIR", help="The guard's folder, which gets the image verifier.")],
    pairs: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help='JSON lines: {"unsafe": …, "safe": …} and {"safe": …}; better not the guard\'s own.'
        ),
    ],
    model: Annotated[
        str, typer.Option(metavar="ID", help="pictoworld, a diffusers folder, or a hub id.")
    ] = "pictoworld",
    images: Annotated[int, typer.Option(min=40, help="Images to generate, half of them with the concept.")] = 800,
    optimiser_steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 500,
    size: Annotated[
        int, typer.Option(min=16, help="Side in pixels that it reads; 64 for PictoWorld, 128 or more else.")
    ] = 64,
    attack: Annotated[
        float, typer.Option(min=0, max=0.5, help="Largest step against it in training, RMS of pixel values.")
    ] = 0.02,
    call: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="More arguments of the pipeline's call.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of prompts, noise and network.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the image verifier that the guard has.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: float32.")] = None,
    model_variant: ModelVariant = None,
    revision: Revision = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
) -> None:
    """Train an image verifier: a small network that reads finished images, for `--policy verify` and `block`.

    A guard's own classifier reads latents, and an attack that looks through it silences it. The image verifier has another
    architecture, other images and another seed. A run that was killed goes on when the same command is given again.

    Example:  `saferedir train verifier --guard runs/star --pairs star.jsonl`
    """
    on_stop(GOES_ON)
    check_space(guard, 64 * MEGABYTE)
    from saferedir.training.image_verifier.train import VerifierTrainConfig, train_verifier

    config = VerifierTrainConfig(
        images=images,
        optimiser_steps=optimiser_steps,
        size=size,
        attack=attack,
        seed=seed,
        call=named_values(call or [], "--call"),
    )
    pipe = load_model(model, dtype=dtype, device=device, variant=model_variant, revision=revision)
    with progress_bar() as bar:
        trained = train_verifier(pipe, guard, pairs, config=config, progress=bar, overwrite=force)
    table = new_table(
        "Held-out images, by their prompts (optimistic: they also set the threshold)", "what", ">rate (95 %)"
    )
    for name in ("recall", "false_positives"):
        table.add_row(name.replace("_", " "), percent_cell(trained.config.measured[name]))
    table.add_row("AUROC", f"{trained.config.measured['auroc']:.4f}")
    console.print(table)
    console.print(f"Image verifier written to {guard}", soft_wrap=True, highlight=False)
