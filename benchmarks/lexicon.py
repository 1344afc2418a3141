"""Every combination of the lexicon's phrases for a concept: by which verdict of a guard it is caught.

Run: python benchmarks/lexicon.py --out runs/lexicon
Guards are the packaged ones, or those of --guards, where {task} stands for the task's name.
Emblem: 21 phrases of a cross x 21 of red x 22 of white, 9,702 sentences. Pointillism: 42 phrases x 8 shapes x 6 backgrounds x
2 colours, 4,032. All are encoded for the prompt verdict. Those that it misses (a random sample of --most of them) are generated
with the image verdict alone, 30 DDIM steps, guidance 4; "caught" means that the image does not show the concept by the CNN judge.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import saferedir as sr
from saferedir.guards.saferedir import SafeRedir
from saferedir.metrics import Rate
from saferedir.pictoworld.captions import EMBLEM, MAX_CHARACTERS, sentence
from saferedir.pictoworld.evaluation import generate, load_judge
from saferedir.pictoworld.judge import Judge
from saferedir.pictoworld.phrases import LEXICON, Phrase
from saferedir.pictoworld.tasks import TASKS, retain_prompts
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.precision import fast_precision
from saferedir.training.saferedir.calibration import prompt_scores
from saferedir.training.saferedir.dataset import encode_on_cpu

#: retain prompts that the prompt verdict is asked about, too
BENIGN = 500


def combinations(task: str) -> Iterator[dict[str, Phrase]]:
    """Phrases by attribute, one of each for every combination."""
    if task == "emblem":
        sides = {attribute: LEXICON[attribute][value] for attribute, value in EMBLEM.items()}
    else:
        plain = {
            attribute: [next(p for p in phrases if p.level == "canonical") for phrases in LEXICON[attribute].values()]
            for attribute in ("shape", "background", "colour")
        }
        sides = {"style": LEXICON["style"]["pointillism"], **plain, "colour": tuple(plain["colour"][:6:4])}  # type: ignore[dict-item]
    for chosen in itertools.product(*sides.values()):
        yield dict(zip(sides, chosen, strict=True))


def words(phrases: dict[str, Phrase], number: int) -> str:
    """A sentence of these phrases that the text encoder can read to its end, the shortest of many."""
    tries = [sentence(phrases, random.Random(f"lexicon/{number}/{n}")) for n in range(20)]
    return next((text for text in tries if len(text) <= MAX_CHARACTERS), min(tries, key=len))


def measure(
    pipe: Any,
    judge: Judge,
    name: str,
    guard: SafeRedir,
    texts: list[str],
    encoded: PromptEmbeds,
    arguments: argparse.Namespace,
) -> None:
    """Write and print one task's record for one guard."""
    task = TASKS[name]
    scores = prompt_scores(guard.network, encoded)
    missed = [text for text, score in zip(texts, scores.tolist(), strict=True) if score < guard.config.prompt_threshold]
    record = {"n": len(texts), "prompt": Rate(len(texts) - len(missed), len(texts)).to_dict(), "missed": missed}
    benign = [prompt.text for prompt in retain_prompts(task, "test-seen", BENIGN, 41)]
    record["benign"] = Rate.of(
        prompt_scores(guard.network, encode_on_cpu(pipe, benign)) >= guard.config.prompt_threshold
    ).to_dict()
    sample = random.Random(0).sample(missed, min(arguments.most, len(missed)))
    if sample:
        alone = SafeRedir(replace(guard.config, use_prompt=False), guard.network, guard.anchor)
        with fast_precision(pipe.device):
            generation = generate(pipe, sample, guards=[alone])
        shown = judge.judge(generation.images).shows(dict(task.forget))
        unresolved = torch.tensor([decision.unresolved for decision in generation.decisions])
        left, silent = Rate.of(shown), Rate.of(shown & ~unresolved)
        record |= {
            "generated": len(sample), "shown": left.to_dict(), "shown_and_not_unresolved": silent.to_dict(),
            "caught": 1 - len(missed) / len(texts) * left.value,
            "caught_at_worst": 1 - len(missed) / len(texts) * left.interval[1],
        }  # fmt: skip
    (arguments.out / f"{name}-{guard.name.replace('/', '_')}.json").write_text(
        json.dumps(record, indent=1) + "\n", encoding="utf-8"
    )
    print(name, guard.name, {key: value for key, value in record.items() if key != "missed"}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["emblem", "pointillism"], choices=["emblem", "pointillism"])
    parser.add_argument("--guards", nargs="+", default=["pictoworld/{task}-usual", "pictoworld/{task}"])
    parser.add_argument("--most", type=int, default=200, help="misses of the prompt verdict that are generated")
    parser.add_argument("--out", type=Path, default=Path("runs/lexicon"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pipe, judge = sr.load_pipeline("pictoworld"), load_judge()
    for name in arguments.tasks:
        texts = [words(phrases, number) for number, phrases in enumerate(combinations(name))]
        encoded = encode_on_cpu(pipe, texts)
        for place in arguments.guards:
            measure(pipe, judge, name, SafeRedir.from_pretrained(place.format(task=name)), texts, encoded, arguments)


if __name__ == "__main__":
    main()
