"""Whether a change of the code moved a single bit: digests of guarded images, to be compared between two checkouts.

Runs every packaged guard under 22 scheduler settings on PictoWorld (one forget prompt and one benign prompt in a batch), and
every family's tiny pipeline of the tests without a guard and under one guard of each kind. Digests hold for one machine and
one version of torch, so none is kept in the repository:

    python benchmarks/bit_identity.py --write runs/bits.json       # in the checkout of before
    python benchmarks/bit_identity.py --against runs/bits.json     # in the checkout of after; exit code 1 where a bit differs
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/ holds the tiny pipelines
from tests.contract.feature import Refused
from tests.contract.guards import GUARDS, PROMPT
from tests.tiny.dits import make_sana
from tests.tiny_pipelines import PIPELINES, run

import saferedir as sr
from saferedir.errors import SaferedirError

PROMPTS = ["a red star over the sky", "a blue heart on white"]
TASKS = ("star", "pointillism", "emblem")
METHODS = ("", "-safe-denoiser", "-spell", "-duo")
STEPS = 6
#: guards of the tiny pipelines: edits of the embeddings, the prediction, extra rows, latents, weights
TINY_GUARDS = ("saferedir", "safe_denoiser", "sld", "dual_latent_r1", "duo", "watcher")

KARRAS: dict[str, Any] = {"use_karras_sigmas": True}
TRAILING: dict[str, Any] = {"timestep_spacing": "trailing"}
#: scheduler settings of PictoWorld: (class, options)
SCHEDULERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("DDIMScheduler", {}),
    ("DDIMScheduler", TRAILING),
    ("DDPMScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("PNDMScheduler", {"skip_prk_steps": False}),
    ("LCMScheduler", {}),
    ("TCDScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", KARRAS),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", KARRAS),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverSinglestepScheduler", {}),
    ("DEISMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", TRAILING),
    ("SASolverScheduler", {}),
)


def digest(images: Tensor) -> str:
    """Of the bits of images, whatever their type."""
    return hashlib.sha256(images.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:24]


def outcome(produce: Any) -> str:
    """Digest of the images, or the first words of the refusal."""
    try:
        return digest(produce())
    except (SaferedirError, Refused) as refusal:
        return f"refused: {type(refusal).__name__}"


def pictoworld() -> Iterator[tuple[str, str]]:
    """(case, outcome) of every packaged guard under every scheduler setting."""
    pipe = sr.load_pipeline("pictoworld")
    pipe.set_progress_bar_config(disable=True)
    plain = pipe.scheduler.config
    guards = {
        f"{task}{method}": sr.Guard.from_pretrained(f"pictoworld/{task}{method}")
        for task in TASKS
        for method in METHODS
    }

    def generate(**settings: Any) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
        images: Tensor = pipe(
            PROMPTS, num_inference_steps=STEPS, guidance_scale=4.0, output_type="latent", generator=generators
        ).images
        return images

    for kind, options in SCHEDULERS:
        pipe.scheduler = getattr(diffusers, kind).from_config(plain, **options)
        label = "-".join([kind.removesuffix("Scheduler"), *(f"{key}={value}" for key, value in options.items())])
        yield f"pictoworld/{label}/unguarded", outcome(generate)
        for name, guard in guards.items():

            def guarded(guard: Any = guard) -> Tensor:
                with sr.attach(pipe, guard):
                    return generate()

            yield f"pictoworld/{label}/{name}", outcome(guarded)


def tiny() -> Iterator[tuple[str, str]]:
    """(case, outcome) of every tiny pipeline, unguarded and under one guard of each kind."""
    for name, case in PIPELINES.items():
        if name == "sana":  # the tests' has a shorter instruction
            case = replace(case, make=functools.partial(make_sana, diffusers.SanaPipeline))
        pipe = case.build()
        yield f"tiny/{name}/unguarded", outcome(lambda case=case, pipe=pipe: run(case, pipe, PROMPT))
        for guard_name in TINY_GUARDS:

            def guarded(guard_name: str = guard_name, case: Any = case, pipe: Any = pipe) -> Tensor:
                guard = GUARDS[guard_name]
                if guard.lacks(case):
                    raise Refused(guard.lacks(case))
                with sr.attach(pipe, guard.make(pipe, case)):
                    return run(case, pipe, PROMPT)

            yield f"tiny/{name}/{guard_name}", outcome(guarded)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", type=Path, help="keep the digests in this JSON file")
    parser.add_argument("--against", type=Path, help="compare with the digests of this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    before: dict[str, str] = json.loads(options.against.read_text()) if options.against else {}
    found: dict[str, str] = {}
    for cases in (tiny(), pictoworld()):
        for name, value in cases:
            found[name] = value
            if before and before.get(name) != value:
                print(f"differs: {name}: {before.get(name, 'missing before')} -> {value}", flush=True)
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(json.dumps(found, indent=1) + "\n")
    missing = sorted(before.keys() - found.keys())
    refused = sum(value.startswith("refused") for value in found.values())
    differing = sum(before[name] != value for name, value in found.items() if name in before)
    print(f"{len(found)} cases, {refused} of them refused; {differing} differ, {len(missing)} are missing")
    if before and (differing or missing):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
