"""Writes the folder: evidence.json, the page, the cells' files, and checksums of all of it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saferedir.server.evidence.cells import (
    Cell,
    EvidenceError,
    check_calibrated,
    check_concept,
    check_measured,
    is_measured,
)
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
            for row in profile["concepts"]:
                check_concept(row, profile["measured"])
            if profile["is_measured"] != is_measured(profile["concepts"]):
                raise EvidenceError(f"profile {profile['name']!r} is called measured, but not every concept is.")
        for judge in model["judges"]:
            check_calibrated(judge)


def page_of(evidence: Mapping[str, Any]) -> str:
    """The readable page, by itself."""
    jinja2: Any = require_extra("jinja2", "bench", "the page of evidence")
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "rate": _rate_text,
        "calibrated": _calibration_text,
        "short": lambda digest: str(digest)[:16],
    }
    text: str = environment.get_template("page.html.j2").render(e=evidence, plain=json.dumps)
    return text


def _rate_text(rate: Mapping[str, Any]) -> str:
    share, low, high = (100 * rate[name] for name in ("rate", "low", "high"))
    return f"{share:.1f} % ({low:.1f}–{high:.1f}), n = {rate['n']}"


def _calibration_text(judge: Mapping[str, Any]) -> str:
    """How often a judge is right, or that nobody has measured it here."""
    known = judge["calibration"]
    if known is None:
        return f"{judge['judge']}: not calibrated" + ("" if judge["is_known"] else f" (not known: {judge['problem']})")
    recall, false_positives = (_rate_text(known[name]) for name in ("recall", "false_positive_rate"))
    return f"{judge['judge']}: recall {recall}; false positives {false_positives}"
