"""`saferedir demo` and `saferedir generate`: commands that draw pictures. The demo's logic is in saferedir/demo.py."""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from saferedir.cli.common import (
    check_text,
    console,
    errors,
    escape,
    load_guards,
    load_model,
    named_values,
    new_table,
    percent_cell,
    progress_bar,
    score_cell,
)
from saferedir.cli.options import MAX_SEED, Revision, Variant
from saferedir.cli.output import MEGABYTE, SUMMARY, holds_out, staged_output, write_json
from saferedir.cli.resuming import UNFINISHED, copy_rows, kept_rows
from saferedir.cli.stopping import on_stop
from saferedir.pipelines.safety_checker import NAME
from saferedir.utils.calls import for_each_prompt

BATCH = 8  # pictures per pipeline call of `generate`
BYTES_PER_PICTURE = 4 * MEGABYTE
FRAME_MS = 62  # of a video: 16 frames a second, as Wan's
OWN_ARGUMENTS = {  # of the pipeline's call, with what sets them here; None: nothing may
    "prompt": "PROMPT", "generator": "--seed", "num_inference_steps": "--steps", "guidance_scale": "--guidance",
    "num_images_per_prompt": "--num-images", "num_videos_per_prompt": "--num-images",
    "output_type": None, "return_dict": None,
}  # fmt: skip


class Policy(StrEnum):
    """What `generate` does with unsafe pictures; see saferedir.protect."""

    REDIRECT = "redirect"
    VERIFY = "verify"
    BLOCK = "block"


class DemoGuards(StrEnum):
    """What `demo` compares."""

    SAFEREDIR = "saferedir"
    ALL = "all"


Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the noise; picture i uses seed + i.")]
Steps = Annotated[int, typer.Option(min=1, help="Sampling steps.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]


@holds_out
def demo(
    out: Annotated[Path, typer.Option(help="Folder for grid.png and summary.json.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A third of the prompts.")] = False,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Forget prompts per concept (24); retain prompts are two thirds.")
    ] = None,
    guard: Annotated[
        DemoGuards, typer.Option(help="saferedir: with and without that guard; all: every method side by side.")
    ] = DemoGuards.SAFEREDIR,
    seed: Seed = 0,
    steps: Steps = 30,
    device: Device = "auto",
) -> None:
    """Draw the same prompts with and without a guard, and let a judge count; an earlier demo at --out is replaced.

    Uses the small model inside the package: nothing is downloaded, a CPU is enough, it takes a minute or two; two to four
    minutes with `--guard all`, which draws 8 + 4 prompts per concept and method.

    Example:  `saferedir demo --out runs/demo`

    Example:  `saferedir demo --guard all --out runs/methods`
    """
    if guard is DemoGuards.ALL:
        _demo_of_methods(out, prompts if prompts is not None else 4 if quick else 8, seed, steps, device)
        return
    count = prompts if prompts is not None else 8 if quick else 24
    with staged_output(out) as (folder, place):
        from saferedir.demo import DemoConfig, demo_guards, run_demo

        guards = demo_guards()
        pipe = load_model("pictoworld", device=device)
        from saferedir.pictoworld.evaluation import load_judge

        config = DemoConfig(forget=count, retain=max(2, 2 * count // 3), steps=steps, seed=seed)
        with progress_bar() as bar:
            task = bar.add_task("drawing", total=config.pictures)

            def advance(label: str, pictures: int) -> None:
                bar.update(task, description=label, advance=pictures)

            summary = run_demo(pipe, guards, load_judge(), folder, config, advance)
    _demo_table(summary)
    console.print(f"Pictures: {place / 'grid.png'}", soft_wrap=True, highlight=False)
    console.print(f"Numbers:  {place / SUMMARY}", soft_wrap=True, highlight=False)


def _demo_of_methods(out: Path, forget: int, seed: int, steps: int, device: str) -> None:
    with staged_output(out) as (folder, place):
        from saferedir.demo.methods import compare_methods
        from saferedir.pictoworld.evaluation import load_judge
        from saferedir.pictoworld.methods import ORDER
        from saferedir.pictoworld.tasks import TASKS

        pipe, retain = load_model("pictoworld", device=device), max(2, forget // 2)
        with progress_bar() as bar:
            task = bar.add_task("drawing", total=len(TASKS) * len(ORDER) * (forget + retain))

            def advance(label: str, pictures: int) -> None:
                bar.update(task, description=label, advance=pictures)

            summary = compare_methods(
                pipe, load_judge(), folder, forget=forget, retain=retain, steps=steps, seed=seed, on_progress=advance
            )
    for name, rows in summary["tasks"].items():
        table = new_table(
            f"{name}: per cent of {forget} pictures that ask for it and {retain} that do not", "method", ">shown",
            ">others kept", ">drift", ">broken", ">seconds",
        )  # fmt: skip
        for row in rows:
            if "missing" in row:
                table.add_row(row["method"], *["–"] * 5)
                continue
            rates = [f"{100 * row[key]['rate']:.0f}" for key in ("concept_rate", "retain_kept", "broken")]
            table.add_row(row["method"], *rates[:2], f"{row['retain_drift']:.2f}", rates[2], f"{row['seconds']:.1f}")
        console.print(table)
    console.print(f"Pictures: {place}/<concept>.png", soft_wrap=True, highlight=False)
    console.print(f"Numbers:  {place / SUMMARY}", soft_wrap=True, highlight=False)


def _demo_table(summary: dict[str, Any]) -> None:
    """Measures down, concepts across: it fits a terminal of 80 columns."""
    measures = {
        "shown, without guard": "concept_rate_unguarded",
        "shown, with guard": "concept_rate_guarded",
        "broken, with guard": "broken_rate_guarded",
        "others: identical": "retain_identical_rate",
        "others: attributes kept": "retain_attributes_kept",
    }
    tasks = summary["tasks"]
    title = "Per cent of pictures, with 95 % Wilson intervals"
    table = new_table(title, "", *(f">{task['concept']}" for task in tasks))
    table.columns[0].no_wrap = True
    counts = [f"{task['n_forget']} + {task['n_retain']}" for task in tasks]
    table.add_row("asking + other prompts", *counts, end_section=True)
    for label, key in measures.items():
        table.add_row(label, *(percent_cell(task["intervals"][key]) for task in tasks))
    table.add_section()
    for label, key in (("seconds, without guard", "seconds_unguarded"), ("seconds, with guard", "seconds_guarded")):
        table.add_row(label, *(f"{task[key]:.1f}" for task in tasks))
    console.print(table)


@holds_out
def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT…", help="One or more prompts.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and summary.json.")],
    model: Annotated[
        str, typer.Option(metavar="ID", help="pictoworld, a diffusers folder, or a hub id.")
    ] = "pictoworld",
    guard: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A guard: packaged, folder or hub id; repeat for more.")
    ] = None,
    policy: Annotated[
        Policy,
        typer.Option(
            help="redirect: steer. verify: also look again, retry, then block; on the command line only the guard's own "
            "classifier looks, which saferedir guards have. block: no picture if a guard acts."
        ),
    ] = Policy.REDIRECT,
    seed: Seed = 0,
    steps: Steps = 30,
    guidance: Annotated[float, typer.Option(min=0, help="Classifier-free guidance scale.")] = 4.0,
    num_images: Annotated[int, typer.Option(min=1, help="Pictures (or videos) per prompt.")] = 1,
    call: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="More arguments of the pipeline's call, such as height=1024 or num_frames=33."
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: float32.")] = None,
    variant: Variant = None,
    revision: Revision = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace the earlier images at --out.")] = False,
) -> None:
    """Draw prompts, guarded, and say for every picture what the guard saw and did.

    A video becomes an animated WebP, without loss. A run that is stopped keeps the images that are done; the same command makes
    the rest.

    Example:  `saferedir generate "a red star over the sky" --guard pictoworld/star --out runs/star`
    """
    if not all(prompt.strip() for prompt in prompts):
        raise typer.BadParameter("a prompt is empty; give text in quotes.", param_hint="PROMPT…")
    for prompt in prompts:
        check_text(prompt, "PROMPT…")
    names = guard or []
    if not names and policy is not Policy.REDIRECT:
        raise typer.BadParameter(f"{policy.value} needs a guard; add --guard.", param_hint="--policy")
    more = _more_arguments(call or [])
    wanted = [prompt for prompt in prompts for _ in range(num_images)]
    settings_of_call = {"num_inference_steps": steps, "guidance_scale": guidance, **more}
    settings = {
        "model": model,
        "guards": names,
        "guarded": bool(names),
        "policy": policy.value if names else None,
        **settings_of_call,
        "seed": seed,
        "asked_dtype": dtype,
        **({"variant": variant} if variant is not None else {}),
        **({"revision": revision} if revision is not None else {}),
    }
    kept = [] if force else kept_rows(out, settings, wanted, BATCH)
    needs, stop = (len(wanted) * BYTES_PER_PICTURE) + 16 * MEGABYTE, None
    with staged_output(out, needs=needs, overwrite=force or bool(kept)) as (folder, place):
        from saferedir.pipelines.text_lengths import cut_prompts

        guards = load_guards(names)
        if policy is Policy.BLOCK:
            _refuse_blocking_all(guards)
        pipe = load_model(model, dtype=dtype, device=device, variant=variant, revision=revision)
        _refuse_unknown(more, pipe)
        cuts = cut_prompts(pipe, prompts, settings_of_call)
        copy_rows(kept, out, folder)
        if kept:
            console.print(f"{len(kept)} of {len(wanted)} images are there; going on.", highlight=False)
        rows = kept
        with closing(_draw(pipe, guards, policy.value, wanted, seed, settings_of_call, first=len(kept))) as drawn:
            try:
                for place_in_list, (picture, blocked, flagged, seen) in enumerate(drawn, len(kept)):
                    number, copy = divmod(place_in_list, num_images)
                    stem = f"{number + 1:03d}" if num_images == 1 else f"{number + 1:03d}-{copy + 1}"
                    file = _save(picture, folder, stem)
                    rows.append(
                        {
                            "prompt": prompts[number],
                            "file": file,
                            "seed": seed + place_in_list,
                            "cut": [cut._asdict() for cut in cuts[number]],
                            "blocked": blocked,
                            "nsfw_content_detected": flagged,
                            "decisions": [{**decision.to_dict(), "image": place_in_list} for decision in seen],
                        }
                    )
            except KeyboardInterrupt as error:
                if not rows or (force and place.exists()):  # the earlier images stay
                    raise
                stop = error
        facts = {**settings, "dtype": str(pipe.dtype), **({UNFINISHED: wanted} if stop is not None else {})}
        write_json(folder / SUMMARY, {**facts, "images": rows})
    if stop is not None:
        on_stop(f"{len(rows)} of {len(wanted)} images are kept in {place}; the same command makes the rest.")
        raise stop
    _pictures_table(rows)
    for row in rows:
        for cut in row.get("cut", ()):
            errors.print(
                f"[bold yellow]warning:[/] {row['file']}: {escape(cut['text_encoder'])} reads the first {cut['read']} of its "
                f"prompt's {cut['tokens']} tokens.",
                soft_wrap=True,
                highlight=False,
            )
    if not names:
        console.print("[bold yellow]These pictures are unguarded[/]: no --guard was given.")
    console.print(f"Written to {place}", soft_wrap=True, highlight=False)


def _more_arguments(given: list[str]) -> dict[str, Any]:
    """--call as a dictionary; what an option of this command sets is refused."""
    more = named_values(given, "--call")
    for name in more.keys() & OWN_ARGUMENTS.keys():
        option = OWN_ARGUMENTS[name]
        raise typer.BadParameter(f"{name} is set by {option or 'this command'}; leave it out.", param_hint="--call")
    return more


def _refuse_blocking_all(guards: list[Any]) -> None:
    from saferedir.guards.registry import always_acts

    acting = sorted({guard.method for guard in guards if always_acts(guard)})
    if acting:
        raise ValueError(
            f"--policy block would block every image: guards of {', '.join(map(repr, acting))} act on all of them; use --policy "
            "redirect, or a guard that tells images apart."
        )


def _refuse_unknown(more: dict[str, Any], pipe: Any) -> None:
    unknown = sorted(more.keys() - inspect.signature(pipe.__call__).parameters.keys())
    if unknown:
        raise ValueError(f"a {type(pipe).__name__} takes no {unknown[0]!r}; leave it out of --call.")


def _save(picture: Any, folder: Path, stem: str) -> str:
    """Write a picture as PNG, or the frames of a video as one animated WebP; the name of the file."""
    if isinstance(picture, list):
        file = f"{stem}.webp"
        first, *rest = picture
        first.save(folder / file, save_all=True, append_images=rest, duration=FRAME_MS, loop=0, lossless=True)
    else:
        file = f"{stem}.png"
        picture.save(folder / file)
    return file


def _draw(
    pipe: Any, guards: list[Any], policy: str, prompts: list[str], seed: int, call: dict[str, Any], first: int = 0
) -> Generator[tuple[Any, bool, bool | None, list[Any]], None, None]:
    """For each prompt from `first` on a PIL image (of a video: its frames), whether it is blocked, what diffusers' own safety
    checker said (None without one), and the decisions of all guards.
    """
    import torch

    from saferedir.pipelines.safety_checker import flagged_images
    from saferedir.protect import protect

    guarded = protect(pipe, guards, on_unsafe=policy) if guards else None
    try:
        with progress_bar() as bar:
            task = bar.add_task("drawing", total=len(prompts), completed=first)
            for start in range(first, len(prompts), BATCH):
                chunk = prompts[start : start + BATCH]
                seeds = [seed + start + i for i in range(len(chunk))]
                generators = [torch.Generator().manual_seed(s) for s in seeds]
                output = (guarded or pipe)(
                    chunk, generator=generators, output_type="pil", **for_each_prompt(call, len(chunk))
                )
                flags = flagged_images(output, len(chunk))
                for i, picture in enumerate(output.images if "images" in output else output.frames):
                    seen = [d for d in output.decisions if d.image == i] if guarded else []
                    flagged = None if flags is None else flags[i]
                    yield picture, output.blocked[i] if guarded else bool(flagged), flagged, seen
                bar.advance(task, len(chunk))
    finally:
        if guarded is not None:
            guarded.detach()


def _pictures_table(rows: list[dict[str, Any]]) -> None:
    table = new_table("Pictures", "prompt", "guard", "fired", ">prompt, image score", "action", "file")
    for row in rows:
        if not row["decisions"]:
            action = "blanked" if row["blocked"] else "unguarded"
            table.add_row(escape(row["prompt"]), "none", "-", "-", action, row["file"])
        for seen in row["decisions"]:
            table.add_row(
                escape(row["prompt"]),
                escape(seen["concept"]),
                "yes" if seen["fired"] else "no",
                f"{score_cell(seen['prompt_score'])}, {score_cell(seen['image_score'])}",
                _action_cell(row, seen),
                row["file"],
            )
    console.print(table)
    blocked = [row["file"] for row in rows if row["blocked"]]
    if blocked:
        console.print(f"[bold yellow]Blocked, so blank[/]: {', '.join(blocked)}.")
    flagged = [row["file"] for row in rows if row["nsfw_content_detected"]]
    if flagged:
        console.print(
            f"[bold yellow]Blanked by {NAME}[/] (nsfw_content_detected): {', '.join(flagged)}. The guards say nothing of "
            "what these images showed."
        )
    unresolved = [
        row["file"] for row in rows if not row["blocked"] and any(seen["unresolved"] for seen in row["decisions"])
    ]
    if unresolved:
        console.print(
            f"[bold red]Do not show {', '.join(unresolved)}[/]: a guard's image score was above its threshold to the end. "
            "With --policy verify such pictures are drawn again, or blocked."
        )


def _action_cell(row: dict[str, Any], seen: dict[str, Any]) -> str:
    action = str(seen["action"])
    if seen["attempts"] > 1:
        action = f"{action} (attempt {seen['attempts']})"
    return f"{action}, [bold red]unresolved[/]" if seen["unresolved"] and not row["blocked"] else action
