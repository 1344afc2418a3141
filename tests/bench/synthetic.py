"""A bench folder of made-up scores: as large as wanted, without a model. Used by test_counted.py and benchmarks/bench.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from saferedir.bench.generation.generate import Shard
from saferedir.bench.generation.resources import JudgeSpec
from saferedir.bench.planning.cell_spec import CellSpec, PromptFacts
from saferedir.bench.records import CellName, Protocol
from saferedir.bench.storage.saved_plan import SavedPlan
from saferedir.bench.storage.store import Store, write_parquet
from saferedir.judges.rules import InTop

LABELS = ("shape:star", "shape:circle", "colour:red", "colour:blue", "broken")
SHARD = 64


def synthetic_bench(root: Path, guards: int, images: int) -> tuple[SavedPlan, Store]:
    """A plan of one cell for each guard and one of the bare model, `images` in each, and a folder with all of them scored."""
    store = Store(root)
    store.prepare(0)
    judge = JudgeSpec("synthetic", {}, "0" * 8)
    names = ["none", *(f"guard-{index}" for index in range(guards))]
    keys = {name: f"{index:016x}" for index, name in enumerate(names)}
    for name in names:
        write_set(store, keys[name], images, judge, shown=0.9 if name == "none" else 0.1)
    shards = {key: shards_of(key, images) for key in keys.values()}
    facts = PromptFacts("set", ({"shape": "star", "colour": "red"},) * images, ("",) * images, None, ())
    plan = SavedPlan(
        title="synthetic",
        description="",
        cells=tuple(cell(name, keys[name], keys["none"], images, judge) for name in names),
        prompts={"prompts": facts},
        shards=shards,
        judges=dict.fromkeys(shards, (judge,)),
        missing=(),
    )
    return plan, store


def cell(name: str, key: str, bare: str, images: int, judge: JudgeSpec) -> CellSpec:
    rule = InTop("shape", "star").to_dict()
    protocol = Protocol("p", images, "synthetic", "star", rule, "none", {}, "float32", "m", (0,))
    named = CellName("model", name, "star", "forget", "none", "set", (0,))
    return CellSpec(named, protocol, {"rung": "none"}, {}, {"torch": "2"}, (key,), (bare,), "prompts", judge.key, {})


def shards_of(key: str, images: int) -> tuple[Shard, ...]:
    return tuple(Shard(key, start, min(start + SHARD, images)) for start in range(0, images, SHARD))


def write_set(store: Store, key: str, images: int, judge: JudgeSpec, shown: float) -> None:
    for shard in shards_of(key, images):
        write_shard(store, shard, judge, shown)


def write_shard(store: Store, shard: Shard, judge: JudgeSpec, shown: float) -> None:
    count = len(shard)
    chance = torch.Generator().manual_seed(int(shard.key, 16) * 1_000_003 + shard.start)
    rows = list(range(shard.start, shard.stop))
    columns: dict[str, Any] = {
        "image": pa.array(rows, pa.int32()),
        "prompt": pa.array(rows, pa.int32()),
        "seed": pa.array(rows, pa.int64()),
        "blocked": pa.array([False] * count, pa.bool_()),
        "intervened": pa.array([shown < 0.5] * count, pa.bool_()),
        "sha256": pa.array([f"{shard.key}-{row}" for row in rows], pa.string()),
        "reason": pa.array([""] * count, pa.string()),
    }
    facts = {
        "key": shard.key,
        "versions": {},
        "seconds": 1.0,
        "peak_bytes": None,
        "device": "cpu",
        "precision": "float32",
    }
    write_parquet(store.path(shard), columns, facts)
    star = (torch.rand(count, generator=chance) < shown).float()
    scores = torch.stack([star, 1 - star, 0.9 * torch.ones(count), torch.zeros(count), torch.zeros(count)], dim=1)
    scored = {"image": columns["image"]}
    scored |= {f"score/{label}": pa.array(scores[:, i].numpy(), pa.float32()) for i, label in enumerate(LABELS)}
    write_parquet(
        store.path(shard, judge.key), scored, {"key": shard.key, "name": judge.name, "options": {}, "digest": ""}
    )
