"""The service under load: many clients at once against the embedded model, each image judged afterwards beside its audit record.

    python benchmarks/server_load.py --clients 64 --requests 1000 --out runs/server_load.json

It starts `saferedir serve` as a process of its own, and says: errors by status; throughput beside a bare loop of guarded batches
in this process, the two in turns, so that other work on the machine meets both (median, lowest and highest of the rounds; and the
same in CPU seconds of the service, which such work hardly changes); p50 and p95 of a request as ratios of one image alone;
whether every image that came is in a whole chain, with its hash, and shows none of the guarded concepts to a judge that the
service does not ask.
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
#: the service with a model that takes no time and gives 64 x 64 pixels of noise
SCRIPTED = """
import sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np
from PIL import Image
from tests.server import served as scripted
noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
make = scripted.ScriptedModel._outcome
scripted.ScriptedModel._outcome = lambda self, key, row: replace(make(self, key, row), image=noise)
with scripted.served(Path(sys.argv[1]), profiles={"default": {"requests_per_minute": 1e9}}) as service:
    print(service.url, flush=True)
    time.sleep(1000)
"""


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


class BareLoop:
    """The same guarded pipeline in this process, without a service."""

    def __init__(self, model: ModelSettings, batch: int) -> None:
        self._pipeline, self._key, self._batch = PipelineModel(model), CallKey("generate", "verify", 2, (64, 64)), batch
        self.seconds(1, 0)  # the first call attaches

    def seconds(self, size: int, first: int) -> float:
        """Of one call, with the prompts and seeds of the requests with these numbers."""
        rows = [Row(self._key, PROMPTS[n % len(PROMPTS)], n, 0.0) for n in range(first, first + size)]
        began = time.perf_counter()
        self._pipeline.run(self._key, rows)
        return time.perf_counter() - began

    def alone(self) -> float:
        """Seconds of one image alone, the median of five."""
        return float(np.median([self.seconds(1, n) for n in range(5)]))

    def together(self, batches: int, first: int) -> tuple[float, float]:
        """(seconds, CPU seconds) an image in full batches."""
        began, count = time.process_time(), batches * self._batch
        wall = sum(self.seconds(self._batch, first + n * self._batch) for n in range(batches))
        return wall / count, (time.process_time() - began) / count

    def close(self) -> None:
        self._pipeline.close()


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

    def __init__(self, url: str) -> None:
        self.url, self.next, self.end, self.lock = url, 0, 0, threading.Lock()
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.images: dict[str, bytes] = {}

    def take(self) -> int | None:
        """The number of the next request, or None."""
        with self.lock:
            number, self.next = self.next, min(self.next + 1, self.end)
            return number if number < self.end else None

    def run(self, requests: int, clients: int) -> float:
        """So many more requests; seconds until the last is answered."""
        self.end += requests
        threads = [threading.Thread(target=self.client) for _ in range(clients)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began

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


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {
        "median": round(float(np.median(values)), 3),
        "lowest": round(min(values), 3),
        "highest": round(max(values), 3),
    }


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


def cost_alone(requests: int, clients: int) -> dict[str, float]:
    """What the service itself costs, in CPU milliseconds an image: HTTP, queue, PNG, audit; its model costs nothing."""
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as name:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPTED, name], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            load = Load(process.stdout.readline().strip())
            load.run(clients, clients)  # everything is imported, and connections are open
            values = []
            for _ in range(5):
                began = cpu_seconds(process.pid)
                load.run(requests // 5, clients)
                values.append(1000 * (cpu_seconds(process.pid) - began) / (requests // 5))
            if set(load.statuses) != {"200"}:
                raise SystemExit(f"answers other than 200: {dict(load.statuses)}")
        finally:
            process.kill()
            process.wait()
    return spread(values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--queue", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5, help="the bare loop and the service take turns so often")
    parser.add_argument("--bare-batches", type=int, default=6, help="of the bare loop in a round")
    parser.add_argument(
        "--cost-alone", action="store_true", help="of the service itself, with a model that costs nothing"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.cost_alone:
        cost = cost_alone(options.requests, options.clients)
        print(json.dumps({"requests": options.requests, "clients": options.clients, "cpu_ms_an_image": cost}))
        return 0
    model = read_settings().models[0].model_copy(update={"steps": options.steps})
    bare = BareLoop(model, options.batch)
    alone = bare.alone()
    rounds: list[dict[str, float]] = []
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
            load, count = Load(url), options.requests // options.rounds
            for _ in range(options.rounds):
                bare_wall, bare_busy = bare.together(options.bare_batches, load.next)
                began = cpu_seconds(process.pid)
                wall = load.run(count, options.clients) / count
                busy = (cpu_seconds(process.pid) - began) / count
                rounds.append(
                    {"wall": bare_wall / wall, "cpu": bare_busy / busy, "bare_cpu": bare_busy, "served_cpu": busy}
                )
                print(json.dumps({"round": len(rounds), **{k: round(v, 4) for k, v in rounds[-1].items()}}), flush=True)
            batches = rows_a_call(httpx2.get(f"{url}/metrics").text)
        finally:
            process.terminate()
            process.wait(600)
        bare.close()
        facts = checked(load.images, f"sqlite:///{folder / 'audit.sqlite'}")
    p50, p95 = np.percentile(load.seconds, [50, 95])
    result = {
        "clients": options.clients, "requests": options.requests, "steps": options.steps, "batch": options.batch,
        "statuses": dict(load.statuses), **facts, "rounds": len(rounds), "rows_a_call": round(batches, 2),
        "throughput_of_bare_loop": spread([r["wall"] for r in rounds]),
        "throughput_of_bare_loop_by_cpu": spread([r["cpu"] for r in rounds]),
        "cpu_ms_an_image": {
            "bare": round(1000 * float(np.mean([r["bare_cpu"] for r in rounds])), 1),
            "served": round(1000 * float(np.mean([r["served_cpu"] for r in rounds])), 1),
        },
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
