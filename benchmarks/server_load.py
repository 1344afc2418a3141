"""The service under load: many clients at once against the embedded model, each image judged afterwards beside its audit record.

    python benchmarks/server_load.py --clients 64 --requests 1000 --out runs/server_load.json

It starts `saferedir serve` as a process of its own, and says: errors by status; throughput beside a bare loop of guarded batches
in this process, measured before, alone (and the same in CPU seconds, which other work on the machine hardly changes); p50 and
p95 of a request as ratios of one image alone; whether every image that came is in a whole chain, with its hash, and shows none
of the guarded concepts to a judge that the service does not ask.
Exit code 1 where an image has no record, a judge finds a concept, or an answer is neither 200 nor 429.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import torch
from PIL import Image

from saferedir.judges.presets import preset
from saferedir.judges.registry import load_judge
from saferedir.server.audit.store import AuditStore
from saferedir.server.config import ModelSettings, read_settings
from saferedir.server.engine.pipeline import PipelineModel
from saferedir.server.engine.rows import CallKey, Row

PROMPTS = (
    "a red star over the sky", "a blue circle on white", "a green square in pointillism", "a yellow heart on grey",
    "a purple triangle with an emblem", "a red circle over the sky",
)  # fmt: skip
#: a judge of another kind than the network that the service asks
SECOND_JUDGE = "pictoworld-template"
TASKS = ("star", "pointillism", "emblem")
COMMAND = "from saferedir.cli import app; app()"


def settings_file(folder: Path, steps: int, batch: int, queue: int) -> Path:
    """A configuration like the default one, without a rate limit."""
    file = folder / "serve.toml"
    model = read_settings().models[0]
    file.write_text(
        f'port = 0\n[[models]]\nname = "pictoworld"\nguards = {json.dumps(model.guards)}\nverify = {json.dumps(model.verify)}\n'
        f'steps = {steps}\nsizes = ["64x64"]\n[profiles.default]\nrequests_per_minute = 1e9\n'
        f'[audit]\nurl = "sqlite:///{folder / "audit.sqlite"}"\n[limits]\nbatch = {batch}\nqueue = {queue}\ndeadline = 3600\n',
        encoding="utf-8",
    )
    return file


def bare_loop(model: ModelSettings, batch: int, batches: int) -> tuple[float, float, float]:
    """Of the same guarded pipeline, without a service: (seconds an image in batches, CPU seconds, seconds of one image alone)."""
    pipeline, key = PipelineModel(model), CallKey("generate", "verify", 2, (64, 64))

    def seconds(size: int, offset: int) -> float:
        rows = [Row(key, PROMPTS[(offset + i) % len(PROMPTS)], offset + i, 0.0) for i in range(size)]
        began = time.perf_counter()
        pipeline.run(key, rows)
        return time.perf_counter() - began

    seconds(1, 0)  # the first call attaches
    alone = float(np.median([seconds(1, n) for n in range(5)]))
    began = time.process_time()
    together = sum(seconds(batch, n * batch) for n in range(batches)) / (batch * batches)
    busy = (time.process_time() - began) / (batch * batches)
    pipeline.close()
    return together, busy, alone


def cpu_seconds(process: int) -> float:
    """Of all threads of a process, until now."""
    times = psutil.Process(process).cpu_times()
    return float(times.user + times.system)


def rows_a_call(metrics: str) -> float:
    """Images in a pipeline call, in the mean."""
    numbers = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("saferedir_batch_rows_"))
    name = 'saferedir_batch_rows_{}{{model="pictoworld"}}'
    return float(numbers[name.format("sum")]) / float(numbers[name.format("count")])


class Load:
    """What clients asked for and what they got."""

    def __init__(self, url: str, requests: int) -> None:
        self.url, self.left, self.lock = url, requests, threading.Lock()
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.images: dict[str, bytes] = {}

    def take(self) -> int | None:
        """The number of the next request, or None."""
        with self.lock:
            self.left -= 1
            return self.left if self.left >= 0 else None

    def client(self) -> None:
        """Ask until all is asked; after a 429 wait as long as it says, and ask again."""
        with httpx2.Client(base_url=self.url, timeout=3600) as connection:
            while (number := self.take()) is not None:
                body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number}
                while True:
                    began = time.perf_counter()
                    answer = connection.post("/v1/images/generations", json=body)
                    code = answer.json().get("error", {}).get("code")
                    with self.lock:
                        self.statuses[f"{answer.status_code} {code}" if code else str(answer.status_code)] += 1
                    if answer.status_code != 429:
                        break
                    time.sleep(min(float(answer.headers["Retry-After"]), 5.0))
                with self.lock:
                    self.seconds.append(time.perf_counter() - began)
                    for item in answer.json().get("data", ()):
                        self.images[item["id"]] = base64.b64decode(item["b64_json"])


def checked(images: dict[str, bytes], url: str) -> dict[str, Any]:
    """What the audit and a second judge say of the images that clients got."""
    store = AuditStore(url)
    chain = store.verify()
    records = {record["image_id"]: record for record in store.records()}
    store.close()
    without = [
        name
        for name, file in images.items()
        if (record := records.get(name)) is None
        or record["action"] != "delivered"
        or record["image_sha256"] != hashlib.sha256(file).hexdigest()
        or len(record["decisions"]) != len(TASKS)
    ]
    judge = load_judge(SECOND_JUDGE)
    pixels = torch.stack(
        [
            torch.from_numpy(np.array(Image.open(io.BytesIO(file)).convert("RGB"))).permute(2, 0, 1).float() / 255
            for file in images.values()
        ]
    )
    scores = judge(pixels)
    shown = {task: int(preset(task).rule.decide(scores).sum()) for task in TASKS}
    return {
        "chain_is_whole": chain.is_whole, "records": chain.records, "images": len(images), "without_record": len(without),
        "second_judge": SECOND_JUDGE, "concept_found": shown,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--queue", type=int, default=256)
    parser.add_argument("--bare-batches", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = read_settings().models[0].model_copy(update={"steps": options.steps})
    together, busy, alone = bare_loop(model, options.batch, options.bare_batches)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = settings_file(folder, options.steps, options.batch, options.queue)
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "serve", "--config", str(file)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            url = next(line for line in process.stdout if "http" in line).split(" at ")[1].split("/v1")[0]
            httpx2.post(
                f"{url}/v1/images/generations", json={"prompt": PROMPTS[1]}, timeout=3600
            )  # the model is loaded
            load = Load(url, options.requests)
            threads = [threading.Thread(target=load.client) for _ in range(options.clients)]
            began, service_began = time.perf_counter(), cpu_seconds(process.pid)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seconds, service_busy = time.perf_counter() - began, cpu_seconds(process.pid) - service_began
            batches = rows_a_call(httpx2.get(f"{url}/metrics").text)
        finally:
            process.terminate()
            process.wait(60)
        facts = checked(load.images, f"sqlite:///{folder / 'audit.sqlite'}")
    p50, p95 = np.percentile(load.seconds, [50, 95])
    result = {
        "clients": options.clients, "requests": options.requests, "steps": options.steps, "batch": options.batch,
        "statuses": dict(load.statuses), **facts,
        "seconds": round(seconds, 2), "images_a_second": round(options.requests / seconds, 3),
        "throughput_of_bare_loop": round(together * options.requests / seconds, 3),
        "cpu_of_bare_loop": round(service_busy / (busy * options.requests), 3), "rows_a_call": round(batches, 2),
        "one_image_alone_s": round(alone, 3), "p50_of_one": round(p50 / alone, 2), "p95_of_one": round(p95 / alone, 2),
    }  # fmt: skip
    text = json.dumps(result, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    allowed = {"200", "429 queue_full", "400 moderation_blocked"}
    is_fine = facts["chain_is_whole"] and not facts["without_record"] and not any(facts["concept_found"].values())
    return 0 if is_fine and set(load.statuses) <= allowed else 1


if __name__ == "__main__":
    raise SystemExit(main())
