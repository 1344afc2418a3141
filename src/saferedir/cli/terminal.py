"""What stands between our commands and a terminal: characters that it cannot show, and the notes of other libraries.

`Commands` in common.py calls `prepare_terminal` before anything is parsed or printed.
"""

from __future__ import annotations

import codecs
import os
import sys
from typing import Any

DEBUG = "SAFEREDIR_DEBUG"
_UNSHOWN = "saferedir-unshown"  # our way of printing a character that the console does not have
#: what transformers, diffusers and huggingface_hub read when they are first imported
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "critical",  # it logs as errors what it raises, too
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def is_debugging() -> bool:
    """Whether tracebacks and the notes of other libraries are wanted (SAFEREDIR_DEBUG=1)."""
    return os.environ.get(DEBUG) == "1"


def _replace_unshown(error: UnicodeError) -> tuple[str, int]:
    r"""A byte of a file name that is no UTF-8 as `\xNN`, so that the name differs from others; "?" for the rest."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unshown = error.object[error.start : error.end]
    return "".join(
        rf"\x{ord(character) - 0xDC00:02x}" if "\udc80" <= character <= "\udcff" else "?" for character in unshown
    ), error.end


codecs.register_error(_UNSHOWN, _replace_unshown)


def prepare_terminal() -> None:
    """What the console cannot show is replaced (`_replace_unshown`); other libraries keep to errors, unless SAFEREDIR_DEBUG=1.

    Before those libraries are imported: a setting of the user's own stays.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_UNSHOWN)
    if not is_debugging():
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)


def quiet() -> None:
    """Silence the bars and advice of diffusers and transformers, unless SAFEREDIR_DEBUG=1; what they raise is printed by us."""
    if is_debugging():
        return
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity(diffusers.utils.logging.CRITICAL)
    transformers.utils.logging.set_verbosity_error()
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
