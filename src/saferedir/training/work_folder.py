"""The work folder of a training or calibration: the plan it belongs to, so that a killed run goes on with its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saferedir.errors import GuardConfigError
from saferedir.utils.files import write_json

PLAN = "plan.json"


def claim(work: Path, plan: dict[str, Any], what: str = "training") -> None:
    """Write `plan` into the folder `work`, which is made; GuardConfigError where an unfinished run of another plan lies there."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / PLAN
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(plan)):
        raise GuardConfigError(
            f"{work} holds an unfinished {what} with another model, other settings or pairs; delete it or choose another --out."
        )
    write_json(path, plan)
