"""`saferedir negation`: reference images that must not appear, as a set of latents, and a guard of such a set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saferedir.cli.common import console, errors, escape, load_model, new_table, print_json, progress_bar
from saferedir.cli.options import MAX_SEED, AsJson, Revision, Variant
from saferedir.cli.output import MEGABYTE, check_file, check_guard_folder, check_space, check_weights_place, holds_out
from saferedir.cli.skipped import show_skipped
from saferedir.cli.stopping import GOES_ON, on_stop

if TYPE_CHECKING:
    from saferedir.guards.negation.build import BuildReport, Source

negation_app = typer.Typer(
    name="negation", help="Make sets of images to stay away from.", no_args_is_help=True, rich_markup_mode="markdown"
)
METHODS = ("safe_denoiser", "spell")


@negation_app.callback()
def _group() -> None:
    """Make sets of images to stay away from."""


@negation_app.command(no_args_is_help=True)
@holds_out
def build(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Set to write, a .safetensors file.")],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Images that must not appear, in any folder below.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Or prompts: text, JSON lines or CSV; one image is made of each."),
    ] = None,
    benign: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Harmless images to compare with; makes the gate much better.")
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="ID", help="Whose VAE encodes: pictoworld, a diffusers folder, or a hub id.")
    ] = "pictoworld",
    height: Annotated[
        int | None, typer.Option(min=8, help="Height of the images you will generate; default: the model's.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=8, help="Width of the images you will generate; default: the model's.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images encoded at a time.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps, with --prompts.")] = 30,
    guidance: Annotated[float, typer.Option(min=0, help="Classifier-free guidance scale, with --prompts.")] = 4.0,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Image i of --prompts uses seed + i.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    variant: Variant = None,
    revision: Revision = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file at --out.")] = False,
) -> None:
    """Encode images into a negation set for the guards safe_denoiser and spell.

    A run that was killed goes on where it stopped when the same command is given again. Images are cropped at their
    centre and resized; exact duplicates count once; unreadable files are listed and skipped. For a model that generates
    videos the set guards single images only.

    Example:  `saferedir negation build --images runs/stars --model pictoworld --out runs/stars.safetensors`
    """
    if (images is None) == (prompts is None):
        raise typer.BadParameter("give either --images or --prompts.", param_hint="--images / --prompts")
    check_file(out, force)
    check_weights_place(out)
    texts = None if prompts is None else _read_prompts(prompts)
    from saferedir.guards.negation.build import build_negation_set, image_sources, prompt_sources
    from saferedir.pipelines.families import family_of
    from saferedir.pipelines.latents import call_size, has_frames, vae_of

    pipe = load_model(model, device=device, variant=variant, revision=revision)
    tall, wide = call_size(pipe, {"height": height, "width": width})
    sources: dict[str, list[Source]] = {}
    left_out: dict[str, str] = {}
    if texts is not None and not family_of(pipe).has_text:
        raise typer.BadParameter(
            f"{model} is a {type(pipe).__name__}, which reads no prompts; give --images.", param_hint="--prompts"
        )
    if texts is not None:
        settings = {"num_inference_steps": steps, "guidance_scale": guidance}
        sources["references"] = prompt_sources(pipe, texts, tall, wide, seed=seed, settings=settings)
    elif images is not None:
        sources["references"] = image_sources(images.expanduser(), tall, wide, left_out)
    if benign is not None:
        sources["benign"] = image_sources(benign.expanduser(), tall, wide, left_out)
    total = sum(map(len, sources.values()))
    check_space(
        out, 32 * MEGABYTE + total * tall * wide
    )  # shards and file: at most six bytes a latent, 4 to 16 a 64 pixels
    work = out.with_name(out.name + ".work")
    if work.exists():
        errors.print(f"An earlier run left {work}; going on from there.", soft_wrap=True, highlight=False)
    on_stop(GOES_ON)
    facts = {"model": model, "height": tall, "width": wide, "sources": "prompts" if texts is not None else "images"}
    with progress_bar().task("encoding", total) as advance:
        report = build_negation_set(vae_of(pipe), sources, out, facts=facts, batch=batch, advance=advance)
    _show_report(report, left_out)
    if has_frames(vae_of(pipe)):
        errors.print(
            "This set holds single images: it guards this model's images (num_frames=1) and refuses its videos.",
            soft_wrap=True,
            highlight=False,
        )
    console.print(f"Negation set written to {out}", soft_wrap=True, highlight=False)


@negation_app.command()
def show(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A negation set.")], as_json: AsJson = False
) -> None:
    """Show the facts of a negation set.

    Example:  `saferedir negation show runs/stars.safetensors`
    """
    from saferedir.guards.negation import NegationSet

    references = NegationSet.open(path, stream=True)
    benign = 0 if references.benign is None else len(references.benign)
    facts = {
        "references": len(references),
        "benign references": benign,
        "latents": "x".join(map(str, references.shape)),
    }
    facts |= {"radius of a shield": f"{references.calibration.radius:.2f}", **references.facts}
    if as_json:
        print_json(facts)
        return
    table = new_table("Negation set", "what", "value")
    for name, value in facts.items():
        table.add_row(escape(name), escape(str(value)))
    console.print(table)


@negation_app.command(no_args_is_help=True)
@holds_out
def guard(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A negation set.")],
    concept: Annotated[str, typer.Option(metavar="NAME", help="What must not appear, in a word or two.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the guard.")],
    method: Annotated[str, typer.Option(help="safe_denoiser or spell.")] = "safe_denoiser",
    force: Annotated[bool, typer.Option("--force", help="Replace the guard at --out.")] = False,
) -> None:
    """Make a guard of a negation set, with the method's default settings.

    Example:  `saferedir negation guard runs/stars.safetensors --concept star --out runs/star-guard`
    """
    if method not in METHODS:
        raise typer.BadParameter(f"{method!r} is none of {', '.join(METHODS)}.", param_hint="--method")
    check_guard_folder(out, force)
    from saferedir.guards.registry import guard_class

    kind: Any = guard_class(method)
    folder = kind.from_set(path, concept=concept).save_pretrained(out)
    console.print(f"Guard written to {folder}", soft_wrap=True, highlight=False)


def _read_prompts(path: Path) -> list[str]:
    from saferedir.training.saferedir.pairs.files import read_prompts

    return read_prompts(path.expanduser())


def _show_report(report: BuildReport, left_out: dict[str, str]) -> None:
    table = new_table("Images", "what", ">number")
    for what, number in (
        ("references", report.references),
        ("benign references", report.benign),
        ("duplicates left out", report.duplicates),
        ("unreadable, skipped", len(report.skipped)),
        ("other files, left out", len(left_out)),
    ):
        table.add_row(what, str(number))
    console.print(table)
    show_skipped({**report.skipped, **left_out})
