"""Chooses the image thresholds of the usual SafeRedir guards anew; weights and prompt thresholds stay as they are.

Run: python benchmarks/calibrate_guards.py --out runs/calibrated
Prompts are those of the guard-validation split (phrasings and scenes that neither training nor the tests use), 416 roll-outs a
task of 20 DDIM steps over guidance 1, 4, 7.5 and 12, and short ones of 1, 2 and 4 steps; the rule is `choose_threshold`.
--in-place writes config, card and summary beside the packaged weights, which are not touched.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import saferedir as sr
from saferedir.cli.common import progress_bar
from saferedir.guards.saferedir import SafeRedir
from saferedir.guards.storage import find_guard
from saferedir.pictoworld.captions import MAX_CHARACTERS
from saferedir.pictoworld.tasks import TASKS, Task, pair, retain_prompts
from saferedir.training.saferedir.dataset import Pair
from saferedir.training.saferedir.recalibrate import CalibrationConfig, calibrate_guard
from saferedir.utils.files import write_json
from saferedir.utils.packaged import GUARD_CONFIG
from saferedir.utils.shared_files import CARD, SHARED_FILES, with_shared_files

SPLIT = "guard-validation"


def prompts(task: Task, count: int, seed: int = 0) -> list[Pair]:
    """`count` pairs and as many benign prompts of the validation split."""
    rng, found = random.Random(f"calibrate/{task.name}/{seed}"), {}
    while len(found) < count:
        unsafe, safe = (prompt.text for prompt in pair(task, SPLIT, rng))
        if unsafe.lower() != safe.lower() and max(len(unsafe), len(safe)) <= MAX_CHARACTERS:
            found.setdefault(unsafe.lower(), Pair(unsafe, safe))
    return [*found.values(), *(Pair(None, prompt.text) for prompt in retain_prompts(task, SPLIT, count, seed))]


def write_summary(path: Path, guard: SafeRedir) -> None:
    """The folder's summary with the new thresholds and rates; what it says of the training stays."""
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    values = guard.config
    thresholds = {
        "prompt": values.prompt_threshold,
        "image": values.image_threshold,
        "last image": values.last_threshold,
    }
    record |= {"thresholds": thresholds, "measured": values.measured, "calibration": values.calibration}
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--rollouts", type=int, default=416)
    parser.add_argument("--out", type=Path, default=Path("runs/calibrated"))
    parser.add_argument("--in-place", action="store_true", help="write config and card beside the packaged weights")
    arguments = parser.parse_args()
    pipe = sr.load_pipeline("pictoworld")
    config = CalibrationConfig(rollouts=arguments.rollouts, verdicts=("image",))
    with progress_bar() as progress:
        for name in arguments.tasks:
            source = find_guard(f"pictoworld/{name}-usual")
            guard = SafeRedir.from_pretrained(source)
            work = arguments.out / f"{name}.work"
            work.mkdir(parents=True, exist_ok=True)
            rows = prompts(TASKS[name], arguments.rollouts // 2)
            found = calibrate_guard(
                pipe, guard, rows, config=config, work=work, progress=progress, note={"split": f"pictoworld {SPLIT}"}
            )
            folder = found.save_pretrained(arguments.out / name)
            print(name, json.dumps(found.config.calibration["verdict"]), found.config.image_threshold, flush=True)
            if arguments.in_place:
                shared = json.loads((source / GUARD_CONFIG).read_text(encoding="utf-8"))[SHARED_FILES]
                record = json.loads((folder / GUARD_CONFIG).read_text(encoding="utf-8"))
                write_json(source / GUARD_CONFIG, {**record, SHARED_FILES: shared})
                card = with_shared_files((folder / CARD).read_text(encoding="utf-8"), source)
                (source / CARD).write_text(card, encoding="utf-8")
                write_summary(source / "summary.json", found)


if __name__ == "__main__":
    main()
