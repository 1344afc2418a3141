"""`saferedir guards test`: one guard on one's own prompts, as a page that begins with the failures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from saferedir.cli.common import (
    console,
    escape,
    load_guards,
    load_model,
    named_values,
    new_table,
    percent_cell,
    progress_bar,
    scaled_loras,
)
from saferedir.cli.judge import judge_and_rule
from saferedir.cli.options import Device, Lora, ModelConfig, Revision, Seed, Steps, Variant
from saferedir.cli.output import MEGABYTE, holds_out, staged_output

#: a video takes as much for each of its frames
BYTES_PER_IMAGE = 4 * MEGABYTE


@holds_out
def test(
    guard: Annotated[str, typer.Argument(metavar="ID", help="A packaged guard, a folder, or a hub id.")],
    forget: Annotated[
        Path, typer.Option(metavar="FILE", help="Prompts that ask for the concept: .txt, .csv, .json, .jsonl.")
    ],
    retain: Annotated[Path, typer.Option(metavar="FILE", help="Prompts that do not ask for it.")],
    out: Annotated[Path, typer.Option(help="Folder for the page (index.html), the images and guard_test.json.")],
    model: Annotated[
        str, typer.Option(metavar="ID", help="pictoworld, a diffusers folder, a checkpoint in one file, or a hub id.")
    ] = "pictoworld",
    lora: Lora = None,
    judge: Annotated[
        str | None, typer.Option(metavar="NAME", help="A judge of `saferedir judge list`; default: the preset's.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What counts as showing the concept; default: the guard's own word."),
    ] = None,
    rule: Annotated[
        str | None, typer.Option(metavar="JSON", help="Or a rule of your own for --judge, as JSON.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first N prompts of each file only.")] = None,
    seed: Seed = 0,
    steps: Steps = 30,
    guidance: Annotated[float, typer.Option(min=0, help="Classifier-free guidance scale.")] = 4.0,
    call: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="More arguments of the pipeline's call, such as height=1024."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images generated at once; take 1 for videos.")] = 4,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: float32.")] = None,
    variant: Variant = None,
    revision: Revision = None,
    model_config: ModelConfig = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier page at --out.")] = False,
) -> None:
    """Try one guard on your own prompts: a page with every image or video, without and with the guard, failures first.

    A forget prompt fails if the judge still finds the concept; a retain prompt fails if one bit of its image changed. Without a
    judge (--preset, or --judge and --rule) the guard's own word is taken for the forget prompts.

    Example:  `saferedir guards test pictoworld/star --forget stars.txt --retain others.txt --preset star --out runs/test`
    """
    judge_set, verifier, judge_name = preset is not None or judge is not None or rule is not None, None, ""
    from saferedir.demo.guard_test import PAGE, run_guard_test
    from saferedir.prompts import read_prompts

    prompts = {
        name: [item.text for item in read_prompts(file, "plain").items][:limit] for name, file in _files(forget, retain)
    }
    total = sum(map(len, prompts.values()))
    settings = {"num_inference_steps": steps, "guidance_scale": guidance, **named_values(call or [], "--call")}
    needs = 2 * total * _frames(settings) * BYTES_PER_IMAGE
    with staged_output(out, marker="guard_test.json", needs=needs, overwrite=force) as (folder, target):
        (loaded,) = load_guards([guard])
        if judge_set:
            made, decides = judge_and_rule(judge, preset, rule, [])
            verifier, judge_name = made.verifier(decides), made.name if preset is None else f"{made.name}, {preset}"
        loras = scaled_loras(lora or [])
        pipe = load_model(
            model, dtype=dtype, device=device, variant=variant, revision=revision, config=model_config, loras=loras
        )
        result = run_guard_test(
            pipe, loaded, prompts["forget"], prompts["retain"], folder, name=guard, verifier=verifier, judge=judge_name,
            call=settings, seed=seed, batch=batch, progress=progress_bar(),
        )  # fmt: skip
    table = new_table(f"{guard} on {total} prompts", "kind", ">failed, per cent (95 %)", ">failed", ">prompts")
    for kind in ("forget", "retain"):
        rate = result.rate(kind)
        low, high = rate.interval
        cell = percent_cell({"n": rate.n, "rate": rate.value if rate.n else 0.0, "low": low, "high": high})
        table.add_row(kind, cell, str(round(rate.value * rate.n)) if rate.n else "0", str(rate.n))
    console.print(table)
    if judge_set:
        bare = result.rate("forget", "shown_before")
        console.print(
            f"Without the guard the judge finds the concept in {round(bare.value * bare.n)} of {bare.n:.0f} forget prompts."
        )
    for case in result.failures[:10]:
        console.print(f"[bold red]{case.kind}[/] {escape(case.prompt)}: {case.failure}", highlight=False)
    if len(result.failures) > 10:
        console.print(f"… and {len(result.failures) - 10} more.", highlight=False)
    console.print(f"Page: {target / PAGE}", soft_wrap=True, highlight=False)


def _frames(call: Mapping[str, Any]) -> int:
    """Frames of a video, as far as --call says; 1 otherwise, and where the pipeline will refuse the number."""
    frames = call.get("num_frames", 1)
    return max(1, frames) if isinstance(frames, int) else 1


def _files(forget: Path, retain: Path) -> tuple[tuple[str, Path], ...]:
    return ("forget", forget), ("retain", retain)
