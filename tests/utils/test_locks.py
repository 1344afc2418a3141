"""One lock for every --out: two holders never overlap, a dead holder's lock is free, and nothing is left behind."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from saferedir.errors import OutputError
from saferedir.utils import locks
from saferedir.utils.locks import lock_file, output_lock

HOLDER = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire(timeout=0)
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_holder_is_refused_and_a_dead_ones_lock_is_free(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "result"
    out.parent.mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock_file(out))], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=rf"^another run is writing to {out}; wait for it"), output_lock(out):
            pass
    finally:
        process.kill()
        process.wait()
    assert lock_file(out).is_file()
    with output_lock(out) as place:
        assert place == out and lock_file(out).is_file()
    assert list(out.parent.iterdir()) == []


def test_same_process(tmp_path: Path) -> None:
    out = tmp_path / "x"
    said: list[str] = []

    def other() -> None:
        try:
            with output_lock(out, nested=True):
                pass
        except OutputError as error:
            said.append(str(error))

    with output_lock(out):
        with output_lock(out, nested=True):
            pass
        assert lock_file(out).is_file(), "the inner block does not end the outer one's"
        with pytest.raises(OutputError, match="another run"), output_lock(out):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(said) == 1 and "another run" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_many_holders_never_overlap(tmp_path: Path) -> None:
    """Each that gets the lock reads a number, waits, and writes it plus one: none is lost, though the file comes and goes."""
    number = tmp_path / "number"
    number.write_text("0")

    def count() -> None:
        done = 0
        while done < 12:
            try:
                with output_lock(tmp_path / "out"):
                    value = int(number.read_text())
                    time.sleep(0.001)
                    number.write_text(str(value + 1))
                    done += 1
            except OutputError:
                time.sleep(0.002)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert number.read_text() == "48" and [path.name for path in tmp_path.iterdir()] == ["number"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    class Unable(locks.FileLock):  # type: ignore[misc, name-defined, valid-type]
        def _acquire(self) -> None:
            raise OSError(code, "no locks")

    monkeypatch.setattr(locks, "FileLock", Unable)
    out = tmp_path / "x"
    with pytest.warns(UserWarning, match="knows no locks"), output_lock(out):
        with pytest.raises(OutputError, match=r"another run .* remove .*\.x\.lock\.$"), output_lock(out):
            pass
    assert list(tmp_path.iterdir()) == []


def test_without_fcntl(tmp_path: Path) -> None:
    """As on Windows, as far as that can be had here."""
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "import saferedir.bench.storage.store\nfrom pathlib import Path\nfrom saferedir.utils.locks import output_lock\n"
        f"with output_lock(Path({str(tmp_path / 'x')!r})): print('held')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "held\n", found.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_mounted_folder_is_locked_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path)
    with output_lock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"), output_lock(tmp_path / "file" / "out"):
        pass
