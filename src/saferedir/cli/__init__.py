"""The command line `saferedir`: one file per group of commands, each parsing, calling the library and printing.

`saferedir bench` is in bench.py, and so on; what a large one prints or goes on from lies beside it (bench_printing.py,
decisions_table.py, resuming.py). All share common.py, options.py, output.py, config_file.py, skipped.py, stopping.py and
terminal.py.
Torch and diffusers are imported inside the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saferedir.cli.attack import attack_app
from saferedir.cli.audit import audit_app
from saferedir.cli.bake import bake as bake_command
from saferedir.cli.bench import bench_app
from saferedir.cli.board import board as board_command
from saferedir.cli.common import Commands, console
from saferedir.cli.config_file import read_defaults
from saferedir.cli.demo import demo as demo_command
from saferedir.cli.evidence import evidence as evidence_command
from saferedir.cli.generate import generate as generate_command
from saferedir.cli.guards import guards_app
from saferedir.cli.inspect import inspect as inspect_command
from saferedir.cli.judge import judge_app
from saferedir.cli.methods import list_methods
from saferedir.cli.negation import negation_app
from saferedir.cli.pairs import pairs_app
from saferedir.cli.policy import policy_app
from saferedir.cli.reports import reports_app
from saferedir.cli.serve import serve as serve_command
from saferedir.cli.train import train_app
from saferedir.cli.world import world_app
from saferedir.utils.packaged import library_version

__all__ = ["app"]

app = typer.Typer(
    name="saferedir",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo_command)
app.command("generate", no_args_is_help=True)(generate_command)
app.add_typer(pairs_app)
app.add_typer(negation_app)
app.add_typer(train_app)
app.command("bake", no_args_is_help=True)(bake_command)
app.command("methods")(list_methods)
app.add_typer(guards_app)
app.add_typer(policy_app)
app.add_typer(bench_app)
app.add_typer(attack_app)
app.command("board")(board_command)
app.add_typer(judge_app)
app.add_typer(world_app)
app.command("serve")(serve_command)
app.add_typer(audit_app)
app.add_typer(reports_app)
app.command("evidence", no_args_is_help=True)(evidence_command)
app.command("inspect", no_args_is_help=True)(inspect_command)


def _print_version(asked: bool) -> None:
    if asked:
        console.print(f"saferedir {library_version()}", highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            callback=read_defaults,
            is_eager=True,
            help="A TOML file with options: a table per command, such as [generate] or [train.saferedir]; "
            "what is typed wins (a typed --guard replaces the file's).",
        ),
    ] = None,
) -> None:
    """A safety layer for text-to-image diffusion: guards that keep a concept out of a model's images.

    See one at work:  `saferedir demo --out runs/demo`

    Set SAFEREDIR_DEBUG=1 to get a traceback where a command otherwise ends with one sentence.
    """
