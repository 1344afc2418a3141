"""Walks the rehearsal's roads, each in a process of its own, and writes docs/rehearsal.md from what they measured.

Run: python -m tests.rehearsal.table --out docs [NAME ...] [--page-only]. Names are rows of models.py ("whole": Stable Diffusion
1.5 undiminished); default all. Results are kept in docs/rehearsal.json, so that one road can be walked again by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.rehearsal.models import MODELS, NOT_REHEARSED, WHOLE, Model

ROOT = Path(__file__).parents[2]
NAMES = (*MODELS, "whole")

HEAD = """# The dress rehearsal

Made by `make rehearsal` (`python -m tests.rehearsal.table --out docs`). For each family a pipeline with the **true shape of
every embedding table, projection and head** of the published checkpoint, random weights, and its depth cut to one or two
blocks walks the whole road of a user: save, load in bfloat16 and float16, `pairs build`, `train saferedir` (2 + 2 roll-outs of
2 steps, 2 optimiser steps, 29 prompts), the guard's folder, other processes that load it, `attach` (a guard that never fires
leaves the latents bit-identical, one that fires changes them) and `protect`, two steps at the published size, DUO pairs and
two training steps where DUO can be trained, `negation build` of three images and its guard where images can be put among
the latents, two cells of a bench. Networks are random: this shows that every stage runs at real shapes and what it takes,
and nothing about how well a guard works.

Seconds are CPU seconds of one thread without bfloat16 instructions; there, products of half-precision tensors are
computed in float32 and rounded, as such instructions do. Memory is the highest resident size of the process in that stage.
"""


def walk(names: Sequence[str], out: Path) -> dict[str, Any]:
    """Results by name, those of earlier walks included."""
    path = out / "rehearsal.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="saferedir-rehearsal-") as work:
            result = Path(work) / "result.json"
            command = [sys.executable, "-m", "tests.rehearsal.road", name, str(Path(work) / "road"), str(result)]
            subprocess.run(command, cwd=ROOT, env=environment, check=False)
            results[name] = json.loads(result.read_text()) if result.is_file() else {"failed": "start"}
        path.write_text(json.dumps({key: results[key] for key in NAMES if key in results}, indent=1) + "\n")
    return results


def model_of(name: str) -> Model:
    """The row of models.py."""
    return WHOLE if name == "whole" else MODELS[name]


def page(results: Mapping[str, Any]) -> str:
    """The Markdown page."""
    rows = [_row(name, results[name]) for name in NAMES if name in results]
    missing = [model_of(name).name for name in NAMES if name not in results]
    parts = [HEAD, "## By model", "", *_table(_COLUMNS, rows)]
    if missing:
        parts += ["", f"Not walked yet: {', '.join(missing)}."]
    parts += ["", "Families without a row:", "", *(f"- {family}: {why}." for family, why in NOT_REHEARSED.items())]
    parts += ["", "## By stage", "", "CPU seconds / highest memory in GB.", "", *_stage_table(results)]
    if "whole" in results:
        parts += ["", *_whole(results["whole"])]
    return "\n".join(parts) + "\n"


_COLUMNS = (
    "model", "cut", ">parameters in memory", "published latents", "stages at", "stages passed", ">CPU s", ">peak, GB",
    ">disk, GB", ">guard, MB",
)  # fmt: skip


def _row(name: str, result: Mapping[str, Any]) -> list[str]:
    stages = result.get("stages", {})
    failed = result.get("failed")
    broken = f"{len(stages)}; failed at {failed}" if failed else f"{len(stages)}; the rest not walked yet"
    passed = f"all {len(stages)}" if result.get("passed") else broken
    call = result.get("call", {})
    size = f"{call['height']} x {call['width']} px" if "height" in call else "published size"
    frames = f", {call['num_frames']} frames" if "num_frames" in call else ""
    latent = result.get("latent", ())
    return [
        model_of(name).name,
        result.get("cut", ""),
        f"{sum(result.get('parameters', {}).values()) / 1e6:,.0f} M",
        " x ".join(str(n) for n in latent if n != 1),
        size + frames + (", and two steps at the published size" if "full" in result else ""),
        passed,
        f"{sum(stage['cpu'] for stage in stages.values()):,.0f}",
        f"{max(stage['peak'] for stage in stages.values()) / 1e9:.1f}" if stages else "–",
        f"{result['disk_bytes'] / 1e9:.1f}" if "disk_bytes" in result else "–",
        f"{result['guard_bytes'] / 1e6:.1f}" if "guard_bytes" in result else "–",
    ]


def _stage_table(results: Mapping[str, Any]) -> list[str]:
    names = [name for name in NAMES if name in results]
    stages = list(dict.fromkeys(stage for name in names for stage in results[name].get("stages", {})))
    rows = []
    for name in names:
        found = results[name].get("stages", {})
        cells = [f"{found[s]['cpu']:.0f} / {found[s]['peak'] / 1e9:.1f}" if s in found else "–" for s in stages]
        rows.append([model_of(name).name, *cells])
    return _table(("model", *(f">{stage}" for stage in stages)), rows)


def _whole(result: Mapping[str, Any]) -> list[str]:
    """Stable Diffusion 1.5 undiminished beside what docs/cost.md counts."""
    from benchmarks.flops import BACKBONES, count

    cost = count(next(backbone for backbone in BACKBONES if backbone.name == "Stable Diffusion 1.5"))
    found = result.get("stages", {})
    rows = [
        ["parameters", f"{sum(result['parameters'].values()) / 1e6:,.1f} M", f"{sum(cost.parameters) / 1e6:,.1f} M"],
        ["model on disk, bfloat16", f"{result['model_bytes'] / 1e9:.2f} GB", f"{cost.weight_bytes / 1e9:.2f} GB"],
    ]
    if "guard_bytes" in result:
        rows.append(["guard on disk", f"{result['guard_bytes'] / 1e6:.1f} MB", f"{cost.guard_bytes / 1e6:.1f} MB"])
    attached = found.get("two steps, attached")
    if attached:
        # three runs of two steps, two rows each, and three encodings of two prompts
        flops = 3 * (2 * 2 * cost.row + 2 * cost.encode)
        seconds = attached["cpu"] / 6
        speed = f"{2 * cost.row / 1e9:,.0f} GFLOP ({flops / attached['cpu'] / 1e9:,.0f} GFLOP/s)"
        rows.append(["one step, two rows", f"{seconds:.1f} CPU s", speed])
    peak = max((stage["peak"] for stage in found.values()), default=0)
    rows.append(
        ["highest memory of the road", f"{peak / 1e9:.1f} GB", f"weights alone {cost.weight_bytes / 1e9:.1f} GB"]
    )
    return [
        "## Stable Diffusion 1.5 undiminished",
        "",
        "860 million parameters in the UNet, 4 x 64 x 64 latents, bfloat16, nothing cut, beside what [cost.md](cost.md) counts.",
        "",
        *_table(("what", ">measured", ">counted"), rows),
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(column.lstrip(">") for column in columns) + " |"]
    lines.append("| " + " | ".join("---:" if column.startswith(">") else "---" for column in columns) + " |")
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(NAMES), help=", ".join(NAMES))
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument(
        "--page-only", action="store_true", help="write the page from docs/rehearsal.json, walk nothing"
    )
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in NAMES]:
        parser.error(f"there is no model {unknown[0]!r}; the models are {', '.join(NAMES)}")
    results = walk([] if given.page_only else given.names, given.out)
    (given.out / "rehearsal.md").write_text(page(results))
    failed = [name for name in results if not results[name].get("passed")]
    for name in failed:
        print(f"{name} failed at {results[name].get('failed')}: {results[name].get('error')}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
