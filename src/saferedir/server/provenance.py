"""Where an image comes from, in the text of a PNG: that a model made it, and the name of its audit record.

Anybody can take the text out, or write another: it helps who is willing. What proves that a file is as it left the service is
the SHA-256 in its record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from saferedir.server.audit.store import AuditStore
from saferedir.server.watermark import payload_of
from saferedir.utils.images import check_image
from saferedir.utils.packaged import library_version

KEY = "saferedir"


def facts_of(image_id: str, model: str) -> dict[str, Any]:
    """What is written into an image."""
    return {"image_id": image_id, "model": model, "made_by_a_model": True, "version": library_version()}


def png_text(facts: Mapping[str, Any]) -> PngImagePlugin.PngInfo:
    """The facts as a text chunk, beside the usual one for the program."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", f"saferedir {library_version()}")
    text.add_text(KEY, json.dumps(facts, sort_keys=True))
    return text


def read_facts(file: Path) -> dict[str, Any] | None:
    """The facts in an image's text; None where there are none.

    Raises:
        ImageFileError: it is no whole image.
    """
    check_image(file)
    with Image.open(file) as image:
        text = getattr(image, "text", {}).get(KEY)
    try:
        facts = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None


def find_record(
    store: AuditStore, file: Path, facts: Mapping[str, Any] | None, payloads: Collection[bytes] = ()
) -> tuple[dict[str, Any] | None, str]:
    """(the record of a file, what leads to it: "hash", "watermark", "name", or "" for nothing).

    By its hash the file is bit by bit what left the service. A watermark's payload is in the pixels of a changed copy, too, and
    can be copied into another image; the name in the image anybody can write there.
    """
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    by_mark = None
    for entry in store.records():
        if entry.get("image_sha256") == digest:
            return entry, "hash"
        if by_mark is None and payload_of(str(entry.get("image_id"))) in payloads:
            by_mark = entry
    if by_mark is not None:
        return by_mark, "watermark"
    name = (facts or {}).get("image_id")
    record = store.record(name) if isinstance(name, str) else None
    return record, "" if record is None else "name"
