"""Where an image comes from, in the text of a PNG: that a model made it, and the name of its audit record.

Anybody can take the text out, or write another: it helps who is willing. What proves that a file is as it left the service is
the SHA-256 in its record.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from saferedir.server.audit.store import AuditStore
from saferedir.server.watermark import PAYLOAD, payload_of
from saferedir.utils.images import check_image
from saferedir.utils.packaged import library_version

KEY = "saferedir"
_PAYLOADS = 256**PAYLOAD


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


@dataclass(frozen=True)
class Match:
    """Records of delivered images that a file may be, and how they are known.

    Attributes:
        records: in the order of the chain; none where nothing matches.
        by: what leads to them: "hash", "watermark", "name", or "" for nothing.
        delivered: among how many records of delivered images.
    """

    records: tuple[dict[str, Any], ...]
    by: str
    delivered: int

    @property
    def chance(self) -> float:
        """How likely a given payload is that of some record though it was not made for it."""
        return -math.expm1(self.delivered * math.log1p(-1 / _PAYLOADS))

    @property
    def pair_chance(self) -> float:
        """How likely some pair of the records shares a payload: 1 - exp(-n (n - 1) / 2N) of N payloads, the birthday problem."""
        return -math.expm1(-self.delivered * (self.delivered - 1) / 2 / _PAYLOADS)


def match_records(
    store: AuditStore, file: Path, facts: Mapping[str, Any] | None, payloads: Collection[bytes] = ()
) -> Match:
    """All records of delivered images that match a file: by its hash, else by a watermark, else by the name in it.

    By its hash the file is bit by bit what left the service. A watermark's payload is in the pixels of a changed copy, too, but
    has so few bits that records share one by chance, and it can be copied into another image; the name in the image anybody can
    write there. What was never delivered (blocked, failed) left no file, so it matches none.
    """
    digest, name = hashlib.sha256(file.read_bytes()).hexdigest(), (facts or {}).get("image_id")
    matches: dict[str, list[dict[str, Any]]] = {"hash": [], "watermark": [], "name": []}
    delivered = 0
    for entry in store.records():
        if entry.get("image_sha256") is None:
            continue
        delivered += 1
        if entry["image_sha256"] == digest:
            matches["hash"].append(entry)
        if payloads and payload_of(str(entry["image_id"])) in payloads:
            matches["watermark"].append(entry)
        if entry["image_id"] == name:
            matches["name"].append(entry)
    by = next((way for way, records in matches.items() if records), "")
    return Match(tuple(matches.get(by, ())), by, delivered)
