"""`saferedir bake`: weight guards merged into a plain diffusers pipeline folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saferedir.cli.common import console, errors, escape, load_guards, load_model, new_table
from saferedir.cli.options import Revision, Variant
from saferedir.cli.output import check_space, holds_out


@holds_out
def bake(
    guard: Annotated[
        list[str], typer.Option(metavar="ID", help="A guard of weights (duo, uce, esd); may be given more than once.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pipeline.")],
    model: Annotated[
        str, typer.Option(metavar="ID", help="pictoworld, a diffusers folder, or a hub id.")
    ] = "pictoworld",
    force: Annotated[bool, typer.Option("--force", help="Replace the baked pipeline at --out.")] = False,
    dtype: Annotated[
        str | None, typer.Option(help="Of the weights: float32, float16 or bfloat16; default: float32.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    variant: Variant = None,
    revision: Revision = None,
) -> None:
    """Merge guards of weights into a model, as a plain diffusers folder.

    The folder loads with diffusers alone. Its card and `saferedir_bake.json` say which guards were merged, with checksums and the
    model's fingerprints of before and after. Other guards are attached while generating: `saferedir generate --guard`.

    Example:  `saferedir bake --guard pictoworld/star-duo --model pictoworld --out runs/without-stars`
    """
    from saferedir.bake import bake as bake_pipeline
    from saferedir.bake import check_place, check_weight_guards

    check_place(out, force)
    guards = check_weight_guards(load_guards(guard))
    pipe = load_model(model, dtype=dtype, device=device, variant=variant, revision=revision)
    parts = [part for part in pipe.components.values() if hasattr(part, "parameters")]
    check_space(out.parent, sum(value.numel() * value.element_size() for part in parts for value in part.parameters()))
    folder = bake_pipeline(pipe, guards, out, overwrite=force)
    table = new_table("Merged", "guard", "method", "concept", ">weight")
    for name, merged in zip(guard, guards, strict=True):
        table.add_row(escape(name), merged.method, escape(merged.config.concept), f"{merged.config.weight:g}")
    console.print(table)
    console.print(f"Pipeline written to {folder}", soft_wrap=True, highlight=False)
    errors.print("Guards calibrated on the model of before need `saferedir guards calibrate` here.", highlight=False)
