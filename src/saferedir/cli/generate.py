"""`saferedir generate`: images of prompts, guarded, with what each guard scored and did."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from saferedir.cli.common import (
    check_text,
    console,
    errors,
    escape,
    load_guards,
    load_model,
    named_values,
    progress_bar,
    scaled_loras,
)
from saferedir.cli.decisions_table import print_decisions
from saferedir.cli.options import Device, Lora, ModelConfig, Revision, Scheduler, Seed, Steps, Variant
from saferedir.cli.output import MEGABYTE, SUMMARY, holds_out, staged_output, write_json
from saferedir.cli.resuming import UNFINISHED, copy_rows, digest_of_json, guard_digests, kept_rows
from saferedir.cli.stopping import on_stop
from saferedir.utils.calls import for_each_prompt, is_prompt_argument
from saferedir.utils.image_output import save_output
from saferedir.utils.images import output_images

BATCH = 8  # images per pipeline call
BYTES_PER_IMAGE = 4 * MEGABYTE
OWN_ARGUMENTS = {  # of the pipeline's call, with what sets them here; None: nothing may
    "prompt": "PROMPT", "generator": "--seed", "num_inference_steps": "--steps", "guidance_scale": "--guidance",
    "num_images_per_prompt": "--num-images", "num_videos_per_prompt": "--num-images",
    "output_type": None, "return_dict": None,
}  # fmt: skip


class Policy(StrEnum):
    """What `generate` does with unsafe images; see saferedir.protect."""

    REDIRECT = "redirect"
    VERIFY = "verify"
    BLOCK = "block"


@holds_out
def generate(
    out: Annotated[Path, typer.Option(help="Folder for the images and summary.json.")],
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT…", help="One or more prompts; or give --prompts.")
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="Prompts in a file: .txt (one a line), .csv, .tsv, .json or .jsonl."
        ),
    ] = None,
    prompts_format: Annotated[
        str, typer.Option(metavar="NAME", help="Of that file: how its columns are called; see docs/protocols.md.")
    ] = "plain",
    model: Annotated[
        str,
        typer.Option(
            metavar="ID", help="pictoworld, a diffusers folder, a .safetensors checkpoint in one file, or a hub id."
        ),
    ] = "pictoworld",
    lora: Lora = None,
    guard: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A guard: packaged, folder or hub id; repeat for more.")
    ] = None,
    policy: Annotated[
        Policy,
        typer.Option(
            help="redirect: steer. verify: also score the finished image, retry, then block; on the command line only the "
            "guard's own classifier scores, which saferedir guards have. block: no image if a guard acts."
        ),
    ] = Policy.REDIRECT,
    seed: Seed = 0,
    steps: Steps = 30,
    scheduler: Scheduler = None,
    guidance: Annotated[float, typer.Option(min=0, help="Classifier-free guidance scale.")] = 4.0,
    num_images: Annotated[int, typer.Option(min=1, help="Images (or videos) per prompt.")] = 1,
    call: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="More arguments of the pipeline's call, such as height=1024 or num_frames=33."
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: float32.")] = None,
    variant: Variant = None,
    revision: Revision = None,
    model_config: ModelConfig = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace the earlier images at --out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")] = False,
) -> None:
    """Generate images of prompts, guarded, and say for every image what the guard scored and did.

    A video becomes an animated WebP, without loss. A run that is stopped keeps the images that are done; the same command makes
    the rest.

    Example:  `saferedir generate "a red star over the sky" --guard pictoworld/star --out runs/star`

    Example:  `saferedir generate --prompts captions.txt --guard pictoworld/star --out runs/captions`

    Example:  `saferedir generate "a red ring" --lora pictoworld-few-steps --scheduler LCMScheduler --steps 2 --guidance 1 --out
    runs/quick`

    Example:  `saferedir generate "a castle" --model owner/sdxl --lora style.safetensors:0.8 --guard runs/logo --out runs/castle`
    """
    texts, prompts_digest = _read_prompts(prompts or [], prompts_file, prompts_format)
    names = guard or []
    if not names and policy is not Policy.REDIRECT:
        raise typer.BadParameter(f"{policy.value} needs a guard; add --guard.", param_hint="--policy")
    more = _more_arguments(call or [])
    loras = scaled_loras(lora or [])
    wanted = [prompt for prompt in texts for _ in range(num_images)]
    settings_of_call = {"num_inference_steps": steps, "guidance_scale": guidance, **more}
    optional = {
        "variant": variant, "revision": revision, "model_config": model_config, "loras": dict(loras) or None,
        "prompts_file": prompts_digest, "scheduler": scheduler,
    }  # fmt: skip
    settings = {
        "model": model,
        "guards": names,
        "guarded": bool(names),
        "policy": policy.value if names else None,
        **settings_of_call,
        "seed": seed,
        "asked_dtype": dtype,
        **{name: value for name, value in optional.items() if value is not None},
    }
    settings["settings_digest"] = digest_of_json({**settings, "guard_weights": guard_digests(names)})
    kept = [] if force else kept_rows(out, settings, wanted, BATCH)
    needs, stop = (len(wanted) * BYTES_PER_IMAGE) + 16 * MEGABYTE, None
    with staged_output(out, needs=needs, overwrite=force or bool(kept)) as (folder, target):
        from saferedir.pipelines.text_lengths import cut_prompts

        guards = load_guards(names)
        if policy is Policy.BLOCK:
            _refuse_blocking_all(guards)
        pipe = load_model(
            model, dtype=dtype, device=device, variant=variant, revision=revision, config=model_config, loras=loras,
            scheduler=scheduler,
        )  # fmt: skip
        _refuse_unknown(more, pipe)
        _warn_of_missing_checker(model, pipe)
        cuts = cut_prompts(pipe, texts, settings_of_call)
        copy_rows(kept, out, folder)
        if kept and not quiet:
            console.print(f"{len(kept)} of {len(wanted)} images are there; going on.", highlight=False)
        rows = kept
        with closing(_generate(pipe, guards, policy.value, wanted, seed, settings_of_call, first=len(kept))) as results:
            try:
                for index, result in enumerate(results, len(kept)):
                    number, copy = divmod(index, num_images)
                    stem = f"{number + 1:03d}" if num_images == 1 else f"{number + 1:03d}-{copy + 1}"
                    rows.append(
                        {
                            "prompt": texts[number],
                            "file": save_output(result.image, folder, stem),
                            "seed": seed + index,
                            "cut": [cut._asdict() for cut in cuts[number]],
                            "blocked": result.blocked,
                            "nsfw_content_detected": result.flagged,
                            "decisions": [{**decision.to_dict(), "image": index} for decision in result.decisions],
                        }
                    )
            except KeyboardInterrupt as error:
                if not rows or (force and target.exists()):  # the earlier images stay
                    raise
                stop = error
        facts = {**settings, "dtype": str(pipe.dtype), **({UNFINISHED: wanted} if stop is not None else {})}
        write_json(folder / SUMMARY, {**facts, "images": rows})
    if stop is not None:
        on_stop(f"{len(rows)} of {len(wanted)} images are kept in {target}; the same command makes the rest.")
        raise stop
    console.quiet = quiet
    print_decisions(rows)
    for row in rows:
        for cut in row.get("cut", ()):
            errors.print(
                f"[bold yellow]warning:[/] {row['file']}: {escape(cut['text_encoder'])} reads the first {cut['read']} of its "
                f"prompt's {cut['tokens']} tokens.",
                soft_wrap=True,
                highlight=False,
            )
    if not names:
        errors.print("[bold yellow]These images are unguarded[/]: no --guard was given.")
    console.print(f"Written to {target}", soft_wrap=True, highlight=False)
    console.quiet = False


def _read_prompts(given: Sequence[str], file: Path | None, format: str) -> tuple[list[str], str | None]:
    """(prompts, the digest of the file they came from, None where they were typed)."""
    if bool(given) == (file is not None):
        hint = "PROMPT… / --prompts"
        raise typer.BadParameter("give prompts in quotes, or a file by --prompts, and not both.", param_hint=hint)
    if file is not None:
        from saferedir.prompts import read_prompts

        prompts = read_prompts(file, format, allow_duplicates=True)
        return [item.text for item in prompts.items], prompts.protocol
    if not all(prompt.strip() for prompt in given):
        raise typer.BadParameter("a prompt is empty; give text in quotes.", param_hint="PROMPT…")
    for prompt in given:
        check_text(prompt, "PROMPT…")
    return list(given), None


def _more_arguments(given: list[str]) -> dict[str, Any]:
    """--call as a dictionary; what an option of this command sets is refused."""
    more = named_values(given, "--call")
    for name in more.keys() & OWN_ARGUMENTS.keys():
        option = OWN_ARGUMENTS[name]
        raise typer.BadParameter(f"{name} is set by {option or 'this command'}; leave it out.", param_hint="--call")
    return more


def _refuse_blocking_all(guards: list[Any]) -> None:
    acting = sorted({guard.method for guard in guards if guard.always_acts})
    if acting:
        raise ValueError(
            f"--policy block would block every image: guards of {', '.join(map(repr, acting))} act on all of them; use --policy "
            "redirect, or a guard that tells images apart."
        )


def _refuse_unknown(more: dict[str, Any], pipe: Any) -> None:
    from saferedir.pipelines.call_checks import expected_value

    parameters = inspect.signature(pipe.__call__).parameters
    unknown = sorted(more.keys() - parameters.keys())
    if unknown:
        raise ValueError(f"a {type(pipe).__name__} takes no {unknown[0]!r}; leave it out of --call.")
    for name, value in more.items():
        expected = None if is_prompt_argument(name) else expected_value(name, value, parameters[name].default)
        if expected is not None:
            raise ValueError(f"--call sets {name} = {value!r}; expected {expected}.")


def _warn_of_missing_checker(model: str, pipe: Any) -> None:
    """Say it where diffusers loaded a checkpoint in one file without the safety checker that the pipeline has a place for."""
    from saferedir.pipelines.loading import SINGLE_FILES

    is_single_file = Path(model).suffix.lower() in SINGLE_FILES
    if is_single_file and "safety_checker" in pipe.components and pipe.safety_checker is None:
        errors.print(
            f"[bold yellow]warning:[/] diffusers loads a {type(pipe).__name__} from one file without its safety checker, so only "
            "the guards check these images.",
            soft_wrap=True,
            highlight=False,
        )


class Result(NamedTuple):
    """One generated image.

    Attributes:
        image: a PIL image; of a video, the list of its frames.
        blocked: whether it is blank because a guard or diffusers' own safety checker withheld it.
        flagged: whether diffusers' own safety checker flagged the image; None without one.
        decisions: of all guards.
    """

    image: Any
    blocked: bool
    flagged: bool | None
    decisions: list[Any]


def _generate(
    pipe: Any, guards: list[Any], policy: str, prompts: list[str], seed: int, call: dict[str, Any], first: int = 0
) -> Generator[Result, None, None]:
    """One result for each prompt from `first` on."""
    import torch

    from saferedir.pipelines.guiders import guided_call
    from saferedir.pipelines.safety_checker import flagged_images
    from saferedir.protect import protect

    guarded = protect(pipe, guards, on_unsafe=policy) if guards else None
    try:
        with progress_bar().task("generating", len(prompts), first) as advance:
            for start in range(first, len(prompts), BATCH):
                chunk = prompts[start : start + BATCH]
                seeds = [seed + start + i for i in range(len(chunk))]
                generators = [torch.Generator().manual_seed(s) for s in seeds]
                with guided_call(pipe, for_each_prompt(call, len(chunk))) as given:
                    output = (guarded or pipe)(chunk, generator=generators, output_type="pil", **given)
                flags = flagged_images(output, len(chunk))
                for i, image in enumerate(output_images(output)):
                    decisions = [decision for decision in output.decisions if decision.image == i] if guarded else []
                    flagged = None if flags is None else flags[i]
                    yield Result(image, output.blocked[i] if guarded else bool(flagged), flagged, decisions)
                advance(len(chunk))
    finally:
        if guarded is not None:
            guarded.detach()
