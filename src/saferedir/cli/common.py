"""What the commands share: the console, sentences for errors, quiet loading of models and guards, progress bars."""

from __future__ import annotations

import errno
import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

import typer
from rich.console import Console, JustifyMethod
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from typer.core import TyperGroup

from saferedir.cli.stopping import stopped, terminable
from saferedir.cli.terminal import is_debugging, prepare_terminal
from saferedir.cli.terminal import quiet as quiet  # the commands import it from here
from saferedir.utils.calls import is_prompt_argument
from saferedir.utils.file_names import shown_name
from saferedir.utils.progress import Advance
from saferedir.utils.text_files import is_encodable

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16")
#: of progress, where there is no terminal to show a bar on
SECONDS_A_LINE = 60.0
#: options whose values are written into files and tables, all of which are UTF-8
TEXT_OPTIONS = frozenset(
    {"--concept", "--anchor", "--anchor-prompt", "--call", "--set", "--rule", "--model", "--guard"}
)

console = Console()
errors = Console(stderr=True)


class Commands(TyperGroup):
    """The top of all commands: an error that a person can act on becomes one sentence and exit code 1."""

    def main(self, *args: Any, **more: Any) -> Any:
        prepare_terminal()
        return super().main(*args, **more)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for option, value in zip(["", *args], args, strict=False):
            name, _, inline = value.partition("=")
            if option in TEXT_OPTIONS:
                check_text(value, option)
            elif name in TEXT_OPTIONS:
                check_text(inline, name)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with terminable(), warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            sentence, code = stopped(error)
            errors.print(escape(sentence), soft_wrap=True, highlight=False)
            raise typer.Exit(code) from None
        except Exception as error:
            message = None if is_debugging() else explain(error)
            if message is None:
                raise
            errors.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)
            raise typer.Exit(1) from None


def check_text(value: str, hint: str) -> None:
    """Refuse a value that came in another encoding than UTF-8, before any work is done; `hint` is the option or argument."""
    if not is_encodable(value):
        raise typer.BadParameter(
            f"'{shown_name(value)}' is not UTF-8; give it in UTF-8, this terminal uses another encoding.",
            param_hint=hint,
        )


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings as one sentence; those of other libraries are for developers."""
    if is_debugging() or (category is UserWarning and "saferedir" in Path(filename).parts):
        errors.print(f"[bold yellow]warning:[/] {escape(str(message))}", soft_wrap=True, highlight=False)


def explain(error: Exception) -> str | None:
    """One sentence for a foreseen error, None for a bug (which keeps its traceback)."""
    from safetensors import SafetensorError

    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        if error.errno == errno.EPIPE:
            return None
        if error.errno == errno.ENOSPC:
            return f"no space is left on the disk{_place(error)}; free some, or choose another --out."
        if error.errno is not None and error.strerror:
            return f"{error.strerror.lower()}{_place(error)}."
    if isinstance(error, (OSError, ValueError, FloatingPointError, SafetensorError)) or _is_our_error(error):
        return text or type(error).__name__
    return None


def _place(error: OSError) -> str:
    return f" ({error.filename})" if error.filename else ""


def _is_our_error(error: Exception) -> bool:
    from saferedir.errors import SaferedirError

    return isinstance(error, SaferedirError)


def escape(text: str) -> str:
    """Text of a user or a file, safe inside rich markup; what would steer a terminal (C0, C1, DEL) is written as an escape."""
    from rich.markup import escape as rich_escape

    steering = {code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
    return rich_escape("".join(f"\\x{ord(letter):02x}" if ord(letter) in steering else letter for letter in text))


def choose_device(name: str) -> torch.device:
    """The torch device of that name; "auto" is CUDA where there is one, else the CPU."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise typer.BadParameter(f"{name!r} is no device; use auto, cpu or cuda.", param_hint="--device") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here; use --device cpu.")
    return device


def load_model(
    name: str,
    *,
    dtype: str | None = None,
    device: str = "auto",
    variant: str | None = None,
    revision: str | None = None,
    config: str | None = None,
    loras: Sequence[tuple[str, float]] = (),
    scheduler: str | None = None,
) -> Any:
    """A pipeline by its id, quietly, on its device, without its own progress bar."""
    if dtype is not None and dtype not in DTYPES:
        raise typer.BadParameter(f"{dtype!r} is none of {', '.join(DTYPES)}.", param_hint="--dtype")
    target = choose_device(device)
    from saferedir.pipelines.loading import load_pipeline

    quiet()
    with console.status(f"loading {escape(name)}"):
        pipe = load_pipeline(
            name, dtype=dtype, device=target, variant=variant, revision=revision, config=config, loras=loras,
            scheduler=scheduler,
        )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def named_values(given: list[str], option: str) -> dict[str, Any]:
    """{"height": 1024, ...} from NAME=VALUE; values are JSON where they can be, text otherwise. `option` is who asks."""
    values: dict[str, Any] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not name.isidentifier() or not equals:
            raise typer.BadParameter(f"{item!r} is not NAME=VALUE.", param_hint=option)
        try:
            values[name] = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            values[name] = value
        if is_prompt_argument(name) and isinstance(values[name], (bool, int, float)):
            values[name] = value  # negative_prompt=2000 is a text
    return values


def scaled_loras(given: Sequence[str]) -> list[tuple[str, float]]:
    """[("style.safetensors", 0.8), ...] from --lora ID or ID:SCALE; the scale is 1 where none is given."""
    from saferedir.utils.packaged import packaged_lora_path
    from saferedir.utils.places import hub_id

    loras = []
    for item in given:
        name, scale = item, 1.0
        head, colon, tail = item.rpartition(":")
        if colon and not Path(item).expanduser().exists() and not item.startswith("hf://"):
            try:
                name, scale = head, float(tail)
            except ValueError:
                raise typer.BadParameter(f"{tail!r} is no scale; give ID or ID:SCALE.", param_hint="--lora") from None
        if not math.isfinite(scale):
            raise typer.BadParameter(f"{tail!r} is no scale; give a finite number.", param_hint="--lora")
        if not name or not (Path(name).expanduser().exists() or packaged_lora_path(name) or hub_id(name)):
            raise typer.BadParameter(f"there is no LoRA at {name or 'an empty name'}.", param_hint="--lora")
        loras.append((name, scale))
    return loras


def load_guards(names: list[str]) -> list[Any]:
    """Guards by their ids."""
    from saferedir.guards.base import Guard

    return [Guard.from_pretrained(name) for name in names]


class _Bar(Progress):
    """rich's own, but not silent until the end where the output goes to a file."""

    _said = 0.0

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._say(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._say(task_id)

    def _say(self, task_id: TaskID) -> None:
        now, task = time.monotonic(), self._tasks[task_id]
        if self.console.is_terminal or now - (self._said or self._started(now)) < SECONDS_A_LINE:
            return
        self._said = now
        left = "" if task.time_remaining is None else f", about {task.time_remaining / 60:.0f} min left"
        total = "" if task.total is None else f" of {task.total:,.0f}"
        self.console.print(f"{task.description}: {task.completed:,.0f}{total}{left}", highlight=False, soft_wrap=True)

    def _started(self, now: float) -> float:
        self._said = now
        return now


class Bars:
    """The library's progress as bars on standard error; a line a minute where that is no terminal.

    They show while a task is open, or for the whole context where it is used as one.
    """

    def __init__(self) -> None:
        self._bar = _Bar(
            TextColumn("{task.description:<34}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=errors,
        )
        self._open = 0

    def __enter__(self) -> Self:
        self._open += 1
        if self._open == 1:
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._open -= 1
        if not self._open:
            self._bar.stop()

    @contextmanager
    def task(self, label: str, total: int | None = None, done: int = 0) -> Iterator[Advance]:
        """One bar; without a total it goes when the work is done."""
        with self:
            bar = self._bar.add_task(escape(label), total=total, completed=done)

            def advance(n: int = 1, label: str = "") -> None:
                changes = {"description": escape(label)} if label else {}
                self._bar.update(bar, advance=n, **changes)

            try:
                yield advance
            finally:
                if total is None:
                    self._bar.remove_task(bar)


def progress_bar() -> Bars:
    """The bars of long jobs."""
    return Bars()


def percent_cell(rate: dict[str, Any]) -> str:
    """A rate with its interval in whole per cent, as a table cell."""
    if not rate["n"]:
        return "no case"
    return f"{100 * rate['rate']:.0f} % ({100 * rate['low']:.0f}–{100 * rate['high']:.0f})"


def score_cell(score: float | None) -> str:
    """A score, or a dash."""
    return "-" if score is None else f"{score:.2f}"


def print_json(value: Any) -> None:
    """Print JSON for a program, in ASCII, because the console replaces what it cannot show."""
    typer.echo(json.dumps(value, indent=2))


def new_table(title: str, *columns: str) -> Table:
    """A table in the look that all commands share; a column that starts with '>' is right-aligned.

    The first column is never wrapped: it holds names, to be copied.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(columns):
        side: JustifyMethod = "right" if name.startswith(">") else "left"
        table.add_column(name.removeprefix(">"), justify=side, overflow="fold", no_wrap=index == 0)
    return table
