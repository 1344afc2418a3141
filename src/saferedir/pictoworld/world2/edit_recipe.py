"""How UCE, ESD and DUO guards of PictoWorld 2's tasks are made: prompts, rendered image pairs, and settings.

`saferedir train uce`, `train esd` and `train duo` use it with `--model pictoworld-flux`; docs/pictoworld.md has what came out.
Settings were chosen on validation phrasings of `star-2`.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saferedir.errors import GuardConfigError
from saferedir.pictoworld.edit_recipe import ESD_TRAINING
from saferedir.pictoworld.world2.captions import Prompt
from saferedir.pictoworld.world2.evaluation import FLUX_CALL
from saferedir.pictoworld.world2.renderer import render_contents
from saferedir.pictoworld.world2.tasks import Task, pair, retain_prompts
from saferedir.training.duo.pair_files import ImagePair, image_path, read_image_pairs, save_image, write_manifest
from saferedir.training.duo.pairs import PairConfig
from saferedir.training.saferedir.dataset import Pair
from saferedir.utils.figures import to_image

#: prompts with the concept, each with its counterpart, and prompts to preserve
PAIRS, PRESERVED = 1200, 800
#: arguments of the model's call that training has to know: its size and the length of its prompts
CALL: Mapping[str, Any] = {name: FLUX_CALL[name] for name in ("height", "width", "max_sequence_length")}
#: the layers by which text enters a transformer with joint attention, before image and text mix
TEXT_LAYERS = ("context_embedder", "text_embedder.linear_1")
#: what FLUX changes of PictoWorld 1's; all layers (`variant="full"`) forget as well, and change half of the other prompts
ESD_OF_FLUX: Mapping[str, Any] = {"targets": TEXT_LAYERS, "learning_rate": 1e-3}
#: errors of flow models are those of the denoised image, so that at pure noise one of 50 here weighs like 1e4 of PictoWorld 1's
#: noise predictions; shapes are settled there, so the preserving term stays at the empty prompt
DUO_TRAINING: Mapping[str, Any] = {
    "beta": 50.0,
    "learning_rate": 5e-4,
    "prior_weight": 50.0,
    "rank": 16,
    "targets": TEXT_LAYERS,
    "conditioning": "prompt",
    "t_max": 999,
    "steps": 150,
}


def edit_rows(task: Task, pairs: int = PAIRS, preserved: int = PRESERVED, seed: int = 42) -> list[Pair]:
    """Prompts of the guards' training phrasings: pairs that differ, then prompts to preserve, half of them neighbours."""
    rows = [Pair(unsafe.text, safe.text) for unsafe, safe in _pairs(task, pairs, seed)]
    return rows + [Pair(None, prompt.text) for prompt in retain_prompts(task, "guard-train", preserved, seed)]


def render_pairs(task: Task, out: Path, count: int = 256, seed: int = 42) -> list[ImagePair]:
    """Render `count` image pairs of a task into the folder `out`: unsafe/, safe/ and a manifest with their prompts.

    A pair is one scene with the concept and with its anchor in the same place, so that its members differ in nothing else. The
    paper generates the first by the model and edits it by SDEdit (arXiv:2407.21035); here the renderer makes both.

    Raises:
        GuardConfigError: `out` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GuardConfigError(f"{out} is not empty; choose another folder for the pairs.")
    prompts = _pairs(task, count, seed)
    records: dict[int, dict[str, Any]] = {index: {} for index in range(count)}
    work = out.with_name(out.name + ".work")  # renamed when it is whole
    shutil.rmtree(work, ignore_errors=True)
    for side, of_side in zip(("unsafe", "safe"), zip(*prompts, strict=True), strict=True):
        for index, image in enumerate(render_contents([prompt.content for prompt in of_side])):
            records[index][side] = {"sha256": save_image(to_image(image), image_path(work, side, index))}
    plan = {
        "source": "PictoWorld 2's renderer",
        "task": task.name,
        "seed": seed,
        "prompts": [[unsafe.text, safe.text] for unsafe, safe in prompts],
    }
    write_manifest(work, plan, records)
    work.replace(out)
    return read_image_pairs(out)


def _pairs(task: Task, count: int, seed: int) -> list[tuple[Prompt, Prompt]]:
    """`count` pairs of the guards' training phrasings that differ."""
    rng = random.Random(f"world-2/edits/{task.name}/{seed}")
    pairs: list[tuple[Prompt, Prompt]] = []
    while len(pairs) < count:
        unsafe, safe = pair(task, "guard-train", rng)
        if unsafe.text.lower() != safe.text.lower():
            pairs.append((unsafe, safe))
    return pairs


def uce_settings(concept: str, **changes: Any) -> dict[str, Any]:
    """Fields of UCE's TrainConfig for a concept of PictoWorld 2, a task or any other; `changes` win."""
    return _settings({}, changes)


def esd_settings(concept: str, **changes: Any) -> dict[str, Any]:
    """Fields of ESD's TrainConfig for a concept of PictoWorld 2, a task or any other; `changes` win."""
    return _settings({**ESD_TRAINING, **ESD_OF_FLUX}, changes)


def duo_settings(concept: str, *, with_prompts: bool = True, **changes: Any) -> dict[str, Any]:
    """Fields of DUO's TrainConfig for a concept of PictoWorld 2, a task or any other; `changes` win.

    with_prompts: whether the pairs come with their prompts; without, all is trained at the empty prompt.
    """
    settings = _settings(DUO_TRAINING, changes)
    if settings["conditioning"] == "null" or not with_prompts:
        settings |= {"conditioning": "null", "prior_conditioning": "null"}
    return settings


def pair_config(**changes: Any) -> PairConfig:
    """How to generate pairs with pictoworld-flux; `changes` are fields of PairConfig."""
    call = {**CALL, "true_cfg_scale": FLUX_CALL["true_cfg_scale"], **changes.pop("call", {})}
    return PairConfig(**{"steps": FLUX_CALL["num_inference_steps"], "batch": 32, "call": call, **changes})


def _settings(usual: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {**usual, **changes, "call": {**CALL, **changes.get("call", {})}}
