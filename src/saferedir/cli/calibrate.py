"""`saferedir guards calibrate`: the thresholds of a trained guard, measured anew on another checkpoint, with its LoRAs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saferedir.cli.common import load_model, named_values, progress_bar, scaled_loras
from saferedir.cli.options import MAX_SEED, Lora, Revision, Variant
from saferedir.cli.output import MEGABYTE, check_guard_folder, check_space, holds_out
from saferedir.cli.pairs import read_captions
from saferedir.cli.stopping import GOES_ON, on_stop

if TYPE_CHECKING:
    from saferedir.training.saferedir.dataset import Pair


@holds_out
def calibrate(
    guard: Annotated[str, typer.Argument(metavar="GUARD", help="A packaged guard, a folder, or a hub id.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the guard with the new thresholds.")],
    model: Annotated[
        str, typer.Option(metavar="ID", help="The checkpoint: pictoworld, a diffusers folder, or a hub id.")
    ] = "pictoworld",
    lora: Lora = None,
    pairs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompt pairs, as for training; better ones that it never saw.")
    ] = None,
    forget: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Or prompts that ask for the concept, one a line.")
    ] = None,
    benign: Annotated[Path | None, typer.Option(metavar="FILE", help="Prompts that do not, one a line.")] = None,
    rollouts: Annotated[int, typer.Option(min=40, help="Images to generate, half of them with the concept.")] = 416,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps of those images.")] = 20,
    guidance: Annotated[
        list[float] | None,
        typer.Option(help="Guidance scales of those images, in turn; default: 1, 4, 7.5, 12 and that of training."),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Images generated at once; default: by their size, 50 small ones, 4 of 1024 pixels."),
    ] = None,
    call: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="More arguments of the pipeline's call, such as height=1024."),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="prompt or image: choose this threshold only, keep the other.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of prompts and noise.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: float32.")] = None,
    variant: Variant = None,
    revision: Revision = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace the guard at --out.")] = False,
) -> None:
    """Choose a guard's thresholds anew for another checkpoint, or for one with your LoRAs; its weights stay.

    Generates images of both kinds of prompts with that checkpoint, scores them with the guard, and writes a guard folder with
    the new thresholds, the checkpoint's fingerprint and the record of what was measured. A run that was killed goes on where
    it stopped when the same command is given again.

    Example:  `saferedir guards calibrate runs/star --model MODEL --lora style.safetensors:0.8 --pairs star.jsonl --out runs/new`

    Example:  `saferedir guards calibrate runs/star --forget stars.txt --benign others.txt --out runs/star-2`
    """
    if (pairs is None) == (forget is None):
        raise typer.BadParameter("give --pairs, or --forget and --benign.", param_hint="--pairs / --forget")
    if forget is not None and benign is None:
        raise typer.BadParameter("--forget needs prompts without the concept, too.", param_hint="--benign")
    if only not in (None, "prompt", "image"):
        raise typer.BadParameter(f"{only!r} is neither prompt nor image.", param_hint="--only")
    check_guard_folder(out, force)
    loras = scaled_loras(lora or [])
    check_space(out, 256 * MEGABYTE)
    from saferedir.cli.train import finish_guard
    from saferedir.guards.saferedir import SafeRedir
    from saferedir.training.saferedir.dataset import Pair, read_pairs
    from saferedir.training.saferedir.recalibrate import CalibrationConfig, calibrate_guard, unpaired

    others = read_captions(benign)
    if pairs is not None:
        rows: list[Pair] = [*read_pairs(pairs), *(Pair(None, text) for text in others)]
    else:
        rows = unpaired(read_captions(forget), others)
    chosen = SafeRedir.from_pretrained(guard)
    config = CalibrationConfig(
        rollouts=rollouts, steps=steps, guidance_scales=tuple(guidance) if guidance else None, batch=batch,
        call=named_values(call or [], "--call"), verdicts=(only,) if only else ("prompt", "image"), seed=seed,
    )  # fmt: skip
    pipe = load_model(model, dtype=dtype, device=device, variant=variant, revision=revision, loras=loras)
    work = out.with_name(out.name + ".work")
    on_stop(GOES_ON)
    with progress_bar() as bar:
        calibrated = calibrate_guard(
            pipe, chosen, rows, config=config, work=work, progress=bar, is_paired=pairs is not None
        )
    calibrated.save_pretrained(out)
    finish_guard(calibrated, out, model, lora or [], {"from": guard, "calibration": calibrated.config.calibration})
    import shutil

    shutil.rmtree(work, ignore_errors=True)
