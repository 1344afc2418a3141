"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

MAX_SEED = 2**63 - 1  # torch takes twice as much, so that seed + i fits

_HELP = "Of the model's weight files, such as fp16; default: the plain ones."
ModelVariant = Annotated[str | None, typer.Option("--model-variant", metavar="NAME", help=_HELP)]
#: the same where no other option is called --variant
Variant = Annotated[str | None, typer.Option("--variant", "--model-variant", metavar="NAME", help=_HELP)]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a model on the hub.")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the noise; image i uses seed + i.")]
Steps = Annotated[int, typer.Option(min=1, help="Sampling steps.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID[:SCALE]",
        help="A LoRA to load into the model, with its scale (1): a packaged name, a .safetensors file, a folder or a hub id; "
        "repeatable.",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="diffusers class to sample with, such as LCMScheduler; default: the model's own."
    ),
]
ModelConfig = Annotated[
    str | None,
    typer.Option(
        metavar="ID", help="For a model in one file: the diffusers folder or hub id that its parts are described in."
    ),
]
CallArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--call",
        metavar="NAME=VALUE",
        help="More arguments of the pipeline's call that training should know, such as height=1024.",
    ),
]
RolloutSteps = Annotated[int | None, typer.Option(min=1, help="Sampling steps of the training images; default: 20.")]
RolloutBatch = Annotated[
    int | None,
    typer.Option(min=1, help="Images generated at once; default: by their size, 50 small ones, 4 of 1024 pixels."),
]
RolloutGuidance = Annotated[
    float | None, typer.Option("--guidance", help="Guidance scale of the training images; default: 4.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
