"""The demo: the embedded model generates the same prompts with and without its three guards, and a judge scores both.

The command around it is in cli/demo.py. Everything is seeded: the same version on the same machine gives the same
images.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from saferedir.demo.grid import block_of, verdict_of
from saferedir.demo.measure import DemoConfig, TaskRun, demo_prompts, image_records, measure, run_task
from saferedir.guards.base import Guard
from saferedir.pictoworld.judge import Judge
from saferedir.pictoworld.tasks import TASKS
from saferedir.pipelines.precision import precision_name
from saferedir.utils.figures import comparison_grid
from saferedir.utils.packaged import library_version
from saferedir.utils.progress import SILENT, Progress

__all__ = ["DemoConfig", "TaskRun", "demo_guards", "demo_prompts", "measure", "run_demo", "run_task", "verdict_of"]


def run_demo(
    pipe: Any,
    guards: dict[str, Guard[Any]],
    judge: Judge,
    out: Path,
    config: DemoConfig | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Generate and judge every task that `guards` has a guard for; writes grid.png and summary.json into `out`.

    Args:
        guards: task name -> guard.
        progress: gets the number of images generated.

    Returns:
        The content of summary.json.
    """
    config = config or DemoConfig()
    with progress.task("generating", config.n_images) as advance:
        runs = [run_task(pipe, guards[name], judge, TASKS[name], config, advance) for name in guards]
    summary: dict[str, Any] = {
        "tasks": [measure(run) for run in runs],
        "versions": versions(),
        "seed": config.seed,
        "steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "settings": asdict(config),
        "device": str(pipe.device),
        "precision": precision_name(pipe.device),
        "images": [record for run in runs for record in image_records(run)],
    }
    grid = comparison_grid(
        [block_of(run, pipe.tokenizer) for run in runs],
        "The same prompts and the same noise, without and with a guard",
        (
            f"PictoWorld, {config.steps} steps, guidance {config.guidance_scale:g}, seed {config.seed}. Per concept "
            "the first prompt of each phrasing that asks for it, then two that do not; nothing is hand-picked.",
            "Under each image: what an independent judge finds. A guard redirects when its score reaches its "
            "threshold; below it, the image must stay identical bit by bit.",
        ),
    )
    out.mkdir(parents=True, exist_ok=True)
    grid.save(out / "grid.png")
    text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False)
    (out / "summary.json").write_text(text + "\n", encoding="utf-8")
    return summary


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    import diffusers
    import transformers

    return {
        "saferedir": library_version(),
        "torch": str(torch.__version__),
        "diffusers": str(diffusers.__version__),
        "transformers": str(transformers.__version__),
        "python": platform.python_version(),
    }


def demo_guards(names: Sequence[str] = tuple(TASKS)) -> dict[str, Guard[Any]]:
    """The packaged guards of the tasks; `GuardNotFoundError` where this installation has none."""
    return {name: Guard.from_pretrained(f"pictoworld/{name}") for name in names}
