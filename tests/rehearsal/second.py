"""The second process of the rehearsal: it loads a saved pipeline and guard, attaches, protects, and prints what that took.

Run: python -m tests.rehearsal.second '{"folder": …, "guard": …, "dtype": …, "call": …}'. Imports the public library and road.py.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from tests.rehearsal.road import _peak, generate, values

import saferedir as sr


def main(task: dict[str, Any]) -> None:
    started = time.process_time()
    pipe = sr.load_pipeline(task["folder"], dtype=getattr(torch, task["dtype"]))
    pipe.set_progress_bar_config(disable=True)
    guard = sr.Guard.from_pretrained(task["guard"])
    with sr.attach(pipe, guard) as attached:
        values(generate(pipe, task["call"], output_type="latent"))
    assert len(attached.decisions) == 1
    if task["dtype"] == "bfloat16":
        # a guard of two roll-outs cannot verify by itself, and `protect` says so
        protected = sr.protect(pipe, guard, on_unsafe="verify", verify=lambda images: [False] * len(images), retries=0)
        output = generate(protected, task["call"], output_type="pt")
        values(output)
        assert len(output.blocked) == 1 and len(output.decisions) >= 1
    print(json.dumps({"cpu": round(time.process_time() - started, 2), "peak": _peak()}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
