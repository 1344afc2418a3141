"""Facts that hold on every family: guards' time is the scheduler's sigma on flow models, and prompts may be long."""

from __future__ import annotations

import pytest
import torch
from tests.contract.guards import GUARDS, Watcher, shared_pipeline
from tests.newer_pipelines import EVERY
from tests.tiny_pipelines import run
from torch import equal

import saferedir as sr
from saferedir.pipelines.families import TEXT_FAMILIES

#: one pipeline of each family, with guidance where there is any
FIRST = {case.family: case.name for case in reversed(EVERY.values()) if case.guidance}
LONG = "a star over the sky and " * 4


@pytest.mark.parametrize("name", FIRST.values())
def test_time_is_a_thousand_sigmas_on_flow_models(name: str) -> None:
    case, pipe, watcher = EVERY[name], shared_pipeline(name), Watcher()
    with sr.attach(pipe, watcher):
        run(case, pipe)
    assert len(watcher.steps) == 3
    for step in watcher.steps:
        if step.run.prediction_type == "flow":
            sigma = pipe.scheduler.sigmas[step.evaluation].float()
            # Wan's and Sana's schedulers cut their timesteps to whole numbers
            torch.testing.assert_close(step.t, (1000 * sigma).expand_as(step.t), rtol=0, atol=1.0)
            torch.testing.assert_close(
                step.sigma.flatten(), sigma.expand_as(step.t).to(step.sigma), rtol=1e-4, atol=1e-5
            )


def test_every_family_is_there() -> None:
    assert set(FIRST) == set(TEXT_FAMILIES)


WITH_WORDS = [name for family, name in FIRST.items() if not TEXT_FAMILIES[family].encoder_reads_image]


@pytest.mark.parametrize("method", ["sld", "negative_prompt", "dual_latent_r1"])
@pytest.mark.parametrize("name", WITH_WORDS)
def test_guards_with_words_act_on_prompts_longer_than_their_own(name: str, method: str) -> None:
    """Families encode to the length of the prompt, or to the next bucket of lengths; the guard's words are one token or two."""
    case, pipe = EVERY[name], shared_pipeline(name)
    plain = run(case, pipe, LONG)
    with sr.attach(pipe, GUARDS[method].make(pipe, case)) as attached:
        guarded = run(case, pipe, LONG)
    assert guarded.isfinite().all() and not equal(guarded, plain) and attached.decisions[0].fired
    assert equal(run(case, pipe, LONG), plain)
