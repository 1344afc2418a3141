"""Pairs of pictures that differ in the concept: drawn by the model itself, edited by SDEdit, filtered by a judge.

Implements docs/methods/duo.md (11) and (12), of "Direct Unlearning Optimization for Robust and Safe Text-to-Image Models"
(arXiv:2407.21035). Deviations: a seed for every (index, attempt), a cap on attempts, PNG instead of JPEG, the *edited*
picture is what the second filter looks at; a picture that never passes costs its pair, not the run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from saferedir.errors import GuardConfigError
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.pipelines.precision import fast_precision
from saferedir.pipelines.safety_checker import without_safety_checker
from saferedir.training.duo.pair_files import (
    MANIFEST,
    ImagePair,
    file_hash,
    picture_path,
    read_image_pairs,
    save_picture,
    write_manifest,
)
from saferedir.utils.calls import for_each_prompt
from saferedir.utils.images import read_image, to_rgb
from saferedir.utils.progress import SILENT, Progress

#: N pictures -> N bools, True where the concept is there
ConceptJudge = Callable[[list[Image.Image]], Sequence[bool]]
#: unsafe and safe pictures -> N bools, True where the rest of the picture stayed as it was
KeepJudge = Callable[[list[Image.Image], list[Image.Image]], Sequence[bool]]


@dataclass(frozen=True)
class PairConfig:
    """How to make pairs.

    Attributes:
        count: pairs to make. strength: of the SDEdit, share of the steps that are drawn again.
        steps, guidance_scale: sampling settings; call: more arguments of both pipelines' calls, such as height and width.
        attempts: pictures drawn at most for one place before its pair is given up; if none of any other place has passed by
            then, the run ends. batch: pictures drawn at once.
        max_difference: reject an edit whose mean absolute difference in pixel values (0..1) is larger; None for no limit.
    """

    count: int = 64
    strength: float = 0.75
    steps: int = 50
    guidance_scale: float = 7.5
    attempts: int = 20
    batch: int = 8
    seed: int = 0
    max_difference: float | None = None
    call: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, low in (("count", 2), ("steps", 1), ("attempts", 1), ("batch", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise GuardConfigError(
                    f"PairConfig.{name} is {getattr(self, name)!r}; expected a whole number >= {low}."
                )
        if not 0 < self.strength <= 1 or math.floor(self.strength * self.steps) < 1:
            raise GuardConfigError(
                f"PairConfig.strength is {self.strength!r}; expected a share of at least one step, up to 1."
            )


def make_pairs(
    pipe: Any,
    prompts: Sequence[tuple[str, str]],
    out: Path,
    *,
    concept: str,
    judge: ConceptJudge | None = None,
    keeps: KeepJudge | None = None,
    config: PairConfig | None = None,
    progress: Progress = SILENT,
) -> list[ImagePair]:
    """Draw pairs into the folder `out` (unsafe/, safe/, manifest.json); goes on where an interrupted run stopped.

    `prompts`: (with the concept, the same wish without it), taken in turn. The judge wants the concept in the first picture
    and not in the second; `keeps` may want the rest to be the same.
    """
    config = config or PairConfig()
    if not prompts:
        raise GuardConfigError("DUO needs at least one pair of prompts to draw from.")
    maker = _Maker(pipe, list(prompts), out, concept, judge, keeps, config)
    maker.claim()
    total, counted = 2 * config.count, maker.finished
    with (
        progress.task("generating pairs", total, counted) as advance,
        without_safety_checker(pipe),
        torch.no_grad(),
    ):
        for stage in ("unsafe", "safe"):
            for done in maker.fill(stage):
                advance(done - counted)
                counted = done
        advance(total - counted)
    return read_image_pairs(out)


class _Maker:
    """One run of `make_pairs`: the records of its manifest and the two stages."""

    def __init__(
        self, pipe: Any, prompts: list[tuple[str, str]], out: Path, concept: str,
        judge: ConceptJudge | None, keeps: KeepJudge | None, config: PairConfig,
    ) -> None:  # fmt: skip
        self.pipe, self.prompts, self.out, self.concept = pipe, prompts, out, concept
        self.judge, self.keeps, self.config = judge, keeps, config
        self.plan = json.loads(
            json.dumps(
                {"config": asdict(config), "concept": concept, "prompts": prompts, "model": backbone_fingerprint(pipe)}
            )
        )
        #: by index: {"unsafe": {seed, attempt, sha256}, "safe": {...}} or {"given_up": stage}
        self.records: dict[int, dict[str, Any]] = {}

    def claim(self) -> None:
        """Read the manifest of an earlier run; refuse that of another plan, and files that are not ours."""
        path = self.out / MANIFEST
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.get("plan") != self.plan:
                raise GuardConfigError(
                    f"{self.out} holds pairs made with other settings; delete it or choose another folder."
                )
            self.records = {int(index): record for index, record in found["pairs"].items()}
        elif self.out.exists() and any(self.out.iterdir()):
            raise GuardConfigError(
                f"{self.out} is not empty and holds no {MANIFEST}; choose another folder for the pairs."
            )
        for index, record in self.records.items():
            for stage in ("unsafe", "safe"):
                file = picture_path(self.out, stage, index)
                if stage in record and (not file.is_file() or file_hash(file) != record[stage]["sha256"]):
                    del record[stage]

    @property
    def finished(self) -> int:
        """Pictures that need no more work."""
        return sum(
            2 if "given_up" in record else ("unsafe" in record) + ("safe" in record) for record in self.records.values()
        )

    def fill(self, stage: str) -> Iterator[int]:
        """Draw until every index has its picture of this stage or was given up; yields pictures finished."""
        config = self.config
        attempts = {
            index: 0 for index in range(config.count)
            if stage not in (record := self.records.setdefault(index, {})) and "given_up" not in record
        }  # fmt: skip
        drawn, gave_up = 0, False
        while attempts:
            chunk = list(attempts)[: config.batch]
            seeds = [_seed(config.seed, index, attempts[index], stage) for index in chunk]
            pictures = self._draw(stage, chunk, seeds)
            drawn += len(chunk)
            for index, seed, picture, is_right in zip(
                chunk, seeds, pictures, self._passes(stage, chunk, pictures), strict=True
            ):
                attempts[index] += 1
                if is_right:
                    digest = save_picture(picture, picture_path(self.out, stage, index))
                    self.records[index][stage] = {"seed": seed, "attempts": attempts[index], "sha256": digest}
                elif attempts[index] == config.attempts:
                    self.records[index], gave_up = {"given_up": stage}, True
                if is_right or attempts[index] == config.attempts:
                    del attempts[index]
            if gave_up and not any(stage in record for record in self.records.values()):
                raise GuardConfigError(self._failure(stage, drawn))
            write_manifest(self.out, self.plan, self.records)
            yield self.finished

    def _failure(self, stage: str, drawn: int) -> str:
        if stage == "unsafe":
            return (
                f"the judge saw {self.concept!r} in none of {drawn} pictures that the base model drew for it, so nothing is "
                "there to unlearn; check the concept's name and the judge."
            )
        return (
            f"none of {drawn} edits got rid of {self.concept!r} and kept the rest; raise the strength "
            f"(now {self.config.strength:g}) or choose another anchor."
        )

    def _draw(self, stage: str, chunk: list[int], seeds: list[int]) -> list[Image.Image]:
        asked, instead = zip(*(self.prompts[index % len(self.prompts)] for index in chunk), strict=True)
        call: dict[str, Any] = {
            **for_each_prompt(self.config.call, len(chunk)),
            "num_inference_steps": self.config.steps,
            "guidance_scale": self.config.guidance_scale,
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            "output_type": "pil",
        }
        precision = fast_precision(self.pipe.device) if self.pipe.dtype == torch.float32 else nullcontext()
        with precision:
            if stage == "unsafe":
                return list(self.pipe(prompt=list(asked), **call).images)
            given = [read_image(picture_path(self.out, "unsafe", index)) for index in chunk]
            edited = _image_to_image(self.pipe)(
                **{**call, **_away_from(asked, call)}, prompt=list(instead), image=given, strength=self.config.strength
            )
            return list(edited.images)

    def _passes(self, stage: str, chunk: list[int], pictures: list[Image.Image]) -> list[bool]:
        wanted = stage == "unsafe"
        passes = [True] * len(chunk) if self.judge is None else [bool(f) == wanted for f in self.judge(pictures)]
        if len(passes) != len(chunk):
            raise GuardConfigError(f"the judge answered {len(passes)} times for {len(chunk)} pictures.")
        if stage == "safe":
            before = [read_image(picture_path(self.out, "unsafe", index)) for index in chunk]
            if self.keeps is not None:
                passes = [ok and bool(kept) for ok, kept in zip(passes, self.keeps(before, pictures), strict=True)]
            if self.config.max_difference is not None:
                differences = [difference(a, b) for a, b in zip(before, pictures, strict=True)]
                passes = [ok and d <= self.config.max_difference for ok, d in zip(passes, differences, strict=True)]
        return passes


def difference(first: Image.Image, second: Image.Image) -> float:
    """Mean absolute difference of two pictures of one size, in 0..1."""
    a, b = (np.asarray(to_rgb(picture), dtype=np.float32) for picture in (first, second))
    return float(np.abs(a - b).mean() / 255)


def _away_from(asked: Sequence[str], call: Mapping[str, Any]) -> dict[str, list[str]]:
    """Negative prompts of the edit: what was asked for, and the user's own behind it, for each text encoder that has one."""
    own = {
        name: value for name, value in call.items() if name.startswith("negative_prompt") and isinstance(value, list)
    }
    wanted = {"negative_prompt": [""] * len(asked), **own}
    return {
        name: [", ".join(filter(None, (text, more))) for text, more in zip(asked, values, strict=True)]
        for name, values in wanted.items()
    }


def _seed(seed: int, index: int, attempt: int, stage: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}/{attempt}/{stage}".encode()).digest()[:7], "big")


def _image_to_image(pipe: Any) -> Any:
    """diffusers' image-to-image pipeline around the same modules."""
    from diffusers import AutoPipelineForImage2Image

    edit = AutoPipelineForImage2Image.from_pipe(pipe)
    edit.set_progress_bar_config(disable=True)
    return edit
