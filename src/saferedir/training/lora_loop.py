"""LoraLoop: the optimiser's loop of a LoRA on a frozen denoiser, with its log, its checkpoints and resuming.

A method adds `step`; see training/duo/loop.py and training/esd/loop.py. A step's random numbers must depend on the seed and
the step's number alone, so that a resumed run goes on alike. One process; several at once are not supported.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from saferedir.guards.base import Guard
from saferedir.utils.files import replacing
from saferedir.utils.progress import Progress

LOG = "training.jsonl"
Log = Callable[[dict[str, Any]], None]


class LoraLoop:
    """Everything of a training loop that does not depend on the loss."""

    def __init__(
        self,
        denoiser: Any,
        work: Path,
        *,
        steps: int,
        checkpoint_every: int,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        self.denoiser, self.work, self.steps, self.checkpoint_every = denoiser, work, steps, checkpoint_every
        self.accelerator = Accelerator(cpu=denoiser.device.type == "cpu")
        self.parameters = [value for value in denoiser.parameters() if value.requires_grad]
        optimiser = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=weight_decay)
        # the denoiser stays on the device its pipeline is on
        self.model, self.optimiser = self.accelerator.prepare(denoiser, optimiser, device_placement=[False, False])

    def step(self, number: int) -> dict[str, Any]:
        """One optimiser step; returns its log line, with the "step" counted from 1."""
        raise NotImplementedError

    @property
    def is_finished(self) -> bool:
        """Whether training ends before all steps are done."""
        return False

    def facts(self, lines: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """What the guard's record says of the log lines."""
        return {}

    def label(self, line: Mapping[str, float]) -> str:
        """What the progress bar says after a step."""
        return f"training, loss {line['loss']:.1e}"

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint holds besides weights and optimiser."""
        return {}

    def take_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take what `extra_state` gave."""

    def descend(self, loss: Tensor) -> float:
        """One step of the optimiser, the gradient clipped to norm 1; returns the norm before."""
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return float(norm)

    def hand_over(self, guard: Guard[Any], out: Path) -> None:
        """Save the finished guard with its log in `out`, and drop the work folder; every process waits for that."""
        if self.accelerator.is_main_process:
            guard.save_pretrained(out)
            shutil.copyfile(self.work / LOG, out / LOG)
            shutil.rmtree(self.work)
        self.accelerator.wait_for_everyone()

    def fit(self, progress: Progress, log: Log | None) -> dict[str, Any]:
        """All steps, from the last checkpoint on; returns facts for the record."""
        start = self._resume()
        lines = [line for line in _read_log(self.work / LOG) if line["step"] <= start]
        self._write_log(lines, "w")
        number = start
        with progress.task("training", self.steps, start) as advance:
            while number < self.steps and not self.is_finished:
                line = self.step(number)
                number += 1
                lines.append(line)
                self._write_log([line], "a")
                if log is not None:
                    log(line)
                advance(1, self.label(line))
                if number % self.checkpoint_every == 0 and self.accelerator.is_main_process:
                    self._checkpoint(number)
        return {"steps_done": number, **self.facts(lines)}

    def _write_log(self, lines: list[dict[str, Any]], mode: str) -> None:
        if self.accelerator.is_main_process:
            with (self.work / LOG).open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)

    def _resume(self) -> int:
        path = self.work / "checkpoint.pt"
        if not path.exists():
            return 0
        state = torch.load(path, weights_only=True)
        for saved, value in zip(state["lora"], self.parameters, strict=True):
            value.data.copy_(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        self.take_extra_state(state)
        return int(state["step"])

    def _checkpoint(self, step: int) -> None:
        state = {
            "step": step,
            **self.extra_state(),
            "lora": [value.detach().cpu() for value in self.parameters],
            "optimiser": self.optimiser.state_dict(),
        }
        path = self.work / "checkpoint.pt"
        with replacing(path) as temporary:
            torch.save(state, temporary)


def mean_of_last(lines: Sequence[Mapping[str, float]], keys: Sequence[str], count: int = 10) -> dict[str, float]:
    """ "last_<key>": the mean over the last lines of the log."""
    last = lines[-count:]
    return {f"last_{key}": round(sum(line[key] for line in last) / max(1, len(last)), 8) for key in keys}


def _read_log(path: Path) -> list[dict[str, Any]]:
    """Whole lines of the log; a line cut off by a kill is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
