"""One lock for every place that results are written to: a second process is refused with one sentence.

The lock of `runs/star` is the hidden file `runs/.star.lock`, removed at the end; where nothing can be written beside
the folder (a mounted volume), it is `.lock` inside. The operating system drops the lock of a process that dies; a file
that such a process left is taken over by the next run. A file system without locks gets a file that counts by being
there, and a warning that says so.
"""

from __future__ import annotations

import errno
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # of a Python without fcntl; `_acquire` says it in our words
    from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from saferedir.errors import OutputError
from saferedir.utils.files import make_parents, make_room, reason

#: a holder that is just removing its file is waited for so long
_SECONDS = 0.3
#: how file systems say that they know no locks
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_held: dict[Path, int] = {}  # place -> the thread that holds it, in this process
_registry = threading.Lock()


def lock_file(out: Path) -> Path:
    """Where the lock of a file or folder lies."""
    inside = out.is_dir() and (out.is_mount() or not os.access(out.parent, os.W_OK))
    return out / ".lock" if inside else out.with_name(f".{out.name}.lock")


@contextmanager
def output_lock(out: Path, *, nested: bool = False) -> Iterator[Path]:
    """Hold the place `out` (a file or folder, there or not) until the block ends; yields it as an absolute path.

    Folders above are made, and removed again where nothing came of them.

    Args:
        nested: a block around this one, in the same thread, may hold the place already.

    Raises OutputError where another process or thread holds it, or where nothing can be written.
    """
    out = out.expanduser().resolve()
    if nested and _held.get(out) == threading.get_ident():
        yield out
        return
    created = make_parents(out)
    try:
        lock = _acquire(out, lock_file(out))
        try:
            with _registry:
                _held[out] = threading.get_ident()
            yield out
        finally:
            with _registry:
                _held.pop(out, None)
            if os.name != "nt" and not isinstance(lock, SoftFileLock):  # those remove their file themselves
                with suppress(OSError):  # while it is held: who opened it meanwhile notices that it is gone
                    Path(lock.lock_file).unlink()
            lock.release()
    finally:
        for folder in created:
            with suppress(OSError):
                folder.rmdir()


def _acquire(out: Path, path: Path) -> BaseFileLock:
    """The lock, held."""
    lock: BaseFileLock = FileLock(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # filelock's own, of the same fact
            try:
                lock.acquire(timeout=_SECONDS, poll_interval=0.05)
            except (OSError, NotImplementedError) as error:
                if isinstance(error, Timeout) or getattr(error, "errno", errno.ENOSYS) not in _NO_LOCKS:
                    raise
                lock = SoftFileLock(path)
                lock.acquire(timeout=_SECONDS, poll_interval=0.05)
    except Timeout as error:
        if not path.exists():  # so nobody holds it
            make_room(out).rmdir()
        hint = f", or, if none is running, remove {path}" if isinstance(lock, SoftFileLock) else ""
        raise OutputError(f"another run is writing to {out}; wait for it, or choose another --out{hint}.") from error
    except OSError as error:
        raise OutputError(f"cannot write beside {out} ({reason(error)}); choose another --out.") from error
    if isinstance(lock, SoftFileLock):
        warnings.warn(
            f"the file system of {out} knows no locks, so {path} holds its place by being there; remove that file if a run was "
            "killed on another machine.",
            stacklevel=2,
        )
    return lock
