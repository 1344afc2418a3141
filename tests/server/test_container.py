"""The Dockerfile, which is not built here: what it copies is there, versions are pinned, and nothing runs as root."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests.documentation.pages import ROOT

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = [line for line in TEXT.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def test_what_is_copied_is_there() -> None:
    kept = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {word for line in LINES if line.startswith("COPY") for word in line.split()[1:-1]}
    assert copied == kept and all((ROOT / name).exists() for name in copied)


def test_it_installs_the_extras_within_the_tested_versions() -> None:
    (install,) = [line for line in LINES if "pip install" in line]
    assert "-c constraints.txt" in install
    extras = re.search(r'EXTRAS="([\w,]+)"', TEXT)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extras is not None and set(extras[1].split(",")) <= set(project["optional-dependencies"])


def test_it_serves_as_a_user_and_with_a_configuration() -> None:
    words = [line.split()[0] for line in LINES]
    assert words.index("USER") < words.index("ENTRYPOINT") and "USER root" not in TEXT
    command = json.loads(next(line for line in LINES if line.startswith("CMD")).removeprefix("CMD "))
    assert command[:2] == ["serve", "--config"]  # and so with keys: another address than loopback needs them


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed; it is in the extra `dev` on Linux")
    answer = subprocess.run([program, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout
