"""What the prompt verdict of SafeRedir guards misses and disturbs, on texts alone: nothing is generated.

Run: python benchmarks/prompt_verdicts.py --task emblem --guards pictoworld/emblem-usual runs/hardened/emblem-prompt
Every combination of the lexicon (emblem, pointillism; see lexicon.py); --misspelt of them with one to three misspelt words, in
spellings of the test part; --n forget prompts and --n benign ones of each test split. Printed: those on the wrong side.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from benchmarks.lexicon import combinations, words

import saferedir as sr
from saferedir.guards.saferedir import SafeRedir
from saferedir.pictoworld.evaluation import cell, rate_of
from saferedir.pictoworld.phrases import misspelt
from saferedir.pictoworld.tasks import TASKS, TEST_SPLITS, forget_prompts, retain_prompts
from saferedir.training.saferedir.calibration import prompt_scores
from saferedir.training.saferedir.dataset import encode_on_cpu


def texts_of(task: str, n: int, count: int) -> dict[str, list[str]]:
    """Texts by what they are; those whose name begins with "benign" should stay below the threshold."""
    sets: dict[str, list[str]] = {}
    if task != "star":
        sets["lexicon"] = [words(phrases, number) for number, phrases in enumerate(combinations(task))]
        rng = random.Random(f"prompt-verdicts/{task}")
        sets["lexicon, misspelt"] = [
            misspelt(text, rng.choice((1, 2, 3)), rng) for text in rng.sample(sets["lexicon"], count)
        ]
    for split in TEST_SPLITS:
        sets[f"forget, {split}"] = [prompt.text for prompt in forget_prompts(TASKS[task], split, n, 41)]
        sets[f"benign, {split}"] = [prompt.text for prompt in retain_prompts(TASKS[task], split, n, 41)]
    return sets


def main() -> None:
    """Print one line a set and guard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="emblem", choices=list(TASKS))
    parser.add_argument("--guards", nargs="+", default=["pictoworld/emblem-usual"])
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--misspelt", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/prompt-verdicts"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pipe = sr.load_pipeline("pictoworld")
    guards = {name: SafeRedir.from_pretrained(name) for name in options.guards}
    records: dict[str, dict[str, object]] = {name: {} for name in guards}
    for kind, texts in texts_of(options.task, options.n, options.misspelt).items():
        encoded = encode_on_cpu(pipe, texts)
        for name, guard in guards.items():
            scores, threshold = prompt_scores(guard.network, encoded), guard.config.prompt_threshold
            wrong = scores >= threshold if kind.startswith("benign") else scores < threshold
            rate, extreme = rate_of(wrong).to_dict(), float(scores.max() if kind.startswith("benign") else scores.min())
            records[name][kind] = {**rate, "extreme": extreme}
            what = "at or above" if kind.startswith("benign") else "below"
            print(
                f"{name}: {kind}: {what} {threshold:.3f}: {cell(rate)}, n = {len(texts)}, extreme {extreme:.3f}",
                flush=True,
            )
    file = options.out / f"{options.task}.json"
    file.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
