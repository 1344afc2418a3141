"""Guarded runs on a device: how often the host waits for it, and that images are those of the CPU, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract.guards import GUARDS, PROMPT
from tests.tiny_pipelines import PIPELINES, run

import saferedir as sr
from saferedir.attach import find_seam
from saferedir.errors import GuardError
from saferedir.guard import Guard, GuardConfig, Step
from saferedir.guards.saferedir.state import Source
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families import family_of
from saferedir.seam.run_state import has_callback
from saferedir.target import Target
from saferedir.target.partial import run_part
from saferedir.utils import host_copies
from saferedir.utils.device import Collecting, Pending, rehearsal
from saferedir.utils.writes import writes_of

ROOT = Path(__file__).parents[2]
#: distances to all references are summed on a device, on the CPU those to the near ones
CLOSE = {"spell"}


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {name: PIPELINES[name].build() for name in ("sd", "flux-true-cfg")}


@pytest.mark.parametrize("name", ["sd", "flux-true-cfg"])
@pytest.mark.parametrize("label", [name for name, case in GUARDS.items() if case.is_method])
def test_images_are_the_same_when_nothing_is_read_before_the_end(pipes: Any, name: str, label: str) -> None:
    case, guard = PIPELINES[name], GUARDS[label]
    if guard.lacks(case):
        pytest.skip(guard.lacks(case))
    images = []
    for is_rehearsal in (False, True):
        try:
            with sr.attach(pipes[name], guard.make(pipes[name], case)):
                if is_rehearsal:
                    with rehearsal():
                        images.append(run(case, pipes[name], [PROMPT, "the moon"]))
                else:
                    images.append(run(case, pipes[name], [PROMPT, "the moon"]))
        except GuardError as refusal:
            pytest.skip(str(refusal))
    if label in CLOSE:
        torch.testing.assert_close(images[1], images[0], rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(images[1], images[0])


class Poison(Guard[GuardConfig]):
    """Puts NaN into the prediction of one step."""

    method = "poison"

    def __init__(self, step: int) -> None:
        super().__init__(GuardConfig(concept="star"))
        self.step = step

    def on_prediction(self, step: Step) -> torch.Tensor:
        assert step.pred is not None
        return step.pred * float("nan") if step.index == self.step else step.pred


@pytest.mark.parametrize("step", [0, 1, 2])
def test_nan_of_any_step_is_refused_before_the_image_leaves(pipes: Any, step: int) -> None:
    with sr.attach(pipes["sd"], Poison(step)) as attached:
        with rehearsal(), pytest.raises(GuardError, match="NaN"):
            run(PIPELINES["sd"], pipes["sd"], PROMPT)
        assert not attached.decisions and attached.runs == 0


def test_a_scheduler_that_is_written_to_is_read_again() -> None:
    values = torch.ones(3)
    host_copies._ON_HOST[values] = (writes_of([values]), values.clone())
    assert host_copies._copy(values) is not None
    values[0] = 2
    assert host_copies._copy(values) is None


@pytest.mark.parametrize("name", ["sd", "flux", "pixart-sigma", "z-image", "kandinsky-3"])
def test_a_guarded_step_does_not_wait(name: str, tmp_path: Path) -> None:
    """In a process of its own: PyTorch does not forget the pretend device. Packed latents have their grid read in one copy."""
    out = tmp_path / "syncs.json"
    methods = [label for label, case in GUARDS.items() if case.is_method]
    more = {
        "sd": methods,
        "pixart-sigma": ["dual_latent_r2", "safree"],
        "z-image": ["dual_latent_r2", "negative_prompt"],
    }
    more["kandinsky-3"] = ["negative_prompt"]  # zeros are written under a mask, and its length cuts the embeddings
    guards = ["watcher", *more.get(name, [])]
    command = [sys.executable, str(ROOT / "benchmarks" / "syncs.py"), "--pipelines", name, "--json", str(out)]
    command += ["--steps", "2", "3", "--guards", *guards, "--selftest"]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    rows = [row for row in json.loads(out.read_text()) if row["guard"] != "bare"]
    assert {row["guard"] for row in rows} == set(guards)
    waits = {row["guard"]: (row["step"]["waits"], row["run"]["waits"], row["attach"]["waits"]) for row in rows}
    assert all(step <= 0 for step, _, _ in waits.values()), waits
    assert all(in_run <= 4 and attaching <= 2 for _, in_run, attaching in waits.values()), waits
    assert all(row["step"]["copies"] <= 0 for row in rows), rows


def test_embeddings_written_to_where_nothing_shows_it_are_refused() -> None:
    kept = PromptEmbeds(torch.zeros(1, 3, 4))
    source, pending = Source(kept), Pending()
    with rehearsal(), Collecting(pending):
        assert source.is_unchanged(kept)
        pending.settle()
        kept.prompt.data.copy_(torch.ones(1, 3, 4))
        assert source.is_unchanged(kept)
        with pytest.raises(GuardError, match="written to in the middle of a run"):
            pending.settle()
    assert not source.is_unchanged(kept)


def test_a_run_with_a_callback_reads_its_checks_as_it_goes() -> None:
    assert has_callback({"callback_on_step_end": print, "prompt": "a star"}) and has_callback({"callback": print})
    assert not has_callback({"callback_on_step_end": None, "callback_on_step_end_tensor_inputs": ["latents"]})


def test_a_run_that_is_left_early_reads_its_checks(pipes: Any) -> None:
    pipe, case = pipes["sd"], PIPELINES["sd"]
    call = {**case.settings, "prompt": [PROMPT], "num_inference_steps": 3, "output_type": "latent"}
    with sr.attach(pipe, Poison(0)):
        seam = find_seam(pipe, family_of(pipe))
        assert seam is not None
        with rehearsal(), torch.no_grad(), pytest.raises(GuardError, match="NaN"):
            run_part(seam, call, None, 0, 1)
        with rehearsal(), torch.no_grad(), pytest.raises(GuardError, match="NaN"):
            run_part(seam, call, None, 0, 2)
    with Target(pipe, [Poison(1)], {"num_inference_steps": 3}) as target:
        latents = torch.zeros(1, 4, 8, 8)
        with rehearsal(), pytest.raises(GuardError, match="NaN"):
            target.predict(latents, 1, prompt=[PROMPT])
        with rehearsal():
            assert target.predict(latents, 0, prompt=[PROMPT]).index == 0


@pytest.mark.parametrize("step", [0, 1])
def test_timesteps_set_anew_in_a_run_are_refused(pipes: Any, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipes["sd"]
    scheduler, calls = pipe.scheduler, []
    original = scheduler.scale_model_input

    def resetting(sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        calls.append(timestep)
        if len(calls) == step + 2:  # after step 0 or 1
            scheduler.set_timesteps(3)
        scaled: torch.Tensor = original(sample, timestep)
        return scaled

    monkeypatch.setattr(scheduler, "scale_model_input", resetting)
    with sr.attach(pipe, Poison(step)) as attached:
        with rehearsal(), pytest.raises(GuardError, match="set anew"):
            run(PIPELINES["sd"], pipe, PROMPT)
        assert not attached.decisions and attached.runs == 0
    monkeypatch.undo()
    with sr.attach(pipe, Poison(9)) as attached:
        run(PIPELINES["sd"], pipe, PROMPT)
        scheduler.set_timesteps(3)
        assert attached.runs == 1
