"""What a command says when it is stopped by Ctrl-C or by a polite kill (SIGTERM, as `docker stop` sends): both end it alike."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GOES_ON = "The same command goes on where it was."
NOTHING_WRITTEN = "Nothing was written."
_sentence = ""


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def on_stop(sentence: str) -> None:
    """From here on, say this if the command is stopped: what is kept, or how to go on."""
    global _sentence
    _sentence = sentence


def stopped(error: KeyboardInterrupt) -> tuple[str, int]:
    """(the last sentence, the exit code) of a command that was stopped."""
    return f"Stopped. {_sentence}".rstrip(), 143 if isinstance(error, Terminated) else 130


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that nothing half-written is left."""
    on_stop("")
    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
