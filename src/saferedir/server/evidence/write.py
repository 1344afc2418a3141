"""Writes the folder: evidence.json, the page, the cells' files, and checksums of all of it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saferedir.server.evidence.cells import Cell, EvidenceError, check_measured
from saferedir.utils.extras import require_extra
from saferedir.utils.files import write_json, write_text

PAGE, DATA, SUMS = "index.html", "evidence.json", "SHA256SUMS"


def write_evidence(evidence: Mapping[str, Any], cells: Sequence[Cell], out: Path) -> Path:
    """Write all of it into a new folder; the page.

    Raises:
        EvidenceError: the folder has files already, or something is called measured that is not; then nothing is left.
    """
    if out.exists() and any(out.iterdir()):
        raise EvidenceError(f"{out} has files already; give a new folder, so that nothing in it is of another time.")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{out.name}.", dir=out.parent))
    try:
        (temporary / "cells").mkdir()
        for cell in cells:
            shutil.copyfile(cell.file, temporary / cell.name)
        check_claims(evidence, temporary)
        write_json(temporary / DATA, dict(evidence), indent=1)
        write_text(temporary / PAGE, page_of(evidence))
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        sums = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(temporary).as_posix()}\n"
            for path in files
        ]
        write_text(temporary / SUMS, "".join(sums))
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out / PAGE


def check_claims(evidence: Mapping[str, Any], folder: Path) -> None:
    """Raise EvidenceError for anything called measured that was not, or calibrated without a calibration."""
    for model in evidence["models"]:
        for profile in model["profiles"]:
            for entry in profile["measured"]:
                check_measured(entry, folder)
            if profile["is_measured"] != bool(profile["measured"]):
                raise EvidenceError(f"profile {profile['name']!r} is called measured, but no result is of exactly it.")
        for judge in model["judges"]:
            if judge["is_calibrated"] != bool(judge["calibrations"]):
                raise EvidenceError(f"judge {judge['preset']!r} is called calibrated, but there is no calibration.")


def page_of(evidence: Mapping[str, Any]) -> str:
    """The readable page, by itself."""
    jinja2: Any = require_extra("jinja2", "bench", "the page of evidence")
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"rate": _rate_text, "short": lambda digest: str(digest)[:16]}
    text: str = environment.get_template("page.html.j2").render(e=evidence, plain=json.dumps)
    return text


def _rate_text(rate: Mapping[str, Any]) -> str:
    share, low, high = (100 * rate[name] for name in ("rate", "low", "high"))
    return f"{share:.1f} % ({low:.1f}–{high:.1f}), n = {rate['n']}"
