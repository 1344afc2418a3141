"""A guard of many concepts: what acts, what is named, that one switched off changes nothing for the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import make_pipeline

import saferedir as sr
from saferedir.errors import GuardConfigError, GuardError
from saferedir.guards.saferedir.network import Redirector, RedirectorConfig
from saferedir.guards.saferedir_many import SafeRedirMany, SafeRedirManyConfig
from saferedir.pipelines.encoding import encode_prompts
from saferedir.utils.device import rehearsal

CONCEPTS = ("star", "ring", "fox")
PROMPTS = ["a x", "b o", "c k"]
CALL: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return make_pipeline()


@pytest.fixture(scope="module")
def network(pipe: Any) -> Redirector:
    config = RedirectorConfig(
        prompt_dim=pipe.unet.config.cross_attention_dim, width=16, heads=2, hidden=16, latent_widths=(8, 8),
        latent_strides=(1, 2), rank=8, t_dim=8, concepts=CONCEPTS, row_heads=True, has_joint=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Redirector(config).eval().requires_grad_(False)
    heads: Any = network.heads
    heads.prompt_score.weight.mul_(20)
    return network


def guard(
    network: Redirector, prompt: tuple[float, ...], image: tuple[float, ...] = (1e3,) * 3, **more: Any
) -> SafeRedirMany:
    settings = {"prompt_thresholds": prompt, "image_thresholds": image, **more}
    return SafeRedirMany(SafeRedirManyConfig(concept="many", network=network.config.to_dict(), **settings), network)


def run(pipe: Any, *guards: SafeRedirMany) -> tuple[torch.Tensor, list[Any]]:
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    if not guards:
        return pipe(PROMPTS, generator=generators, **CALL).images, []
    with sr.attach(pipe, guards) as attached:
        return pipe(PROMPTS, generator=generators, **CALL).images, attached.decisions


def scores(pipe: Any, network: Redirector) -> torch.Tensor:
    with torch.no_grad():
        return network.prompt_logits(encode_prompts(pipe, PROMPTS).prompt)


def test_each_concept_is_held_against_its_own_threshold(pipe: Any, network: Redirector) -> None:
    logits = scores(pipe, network)
    limits = logits.sort(dim=0).values[1:].mean(dim=0)  # of each concept the highest of three images fires
    images, decisions = run(pipe, guard(network, tuple(limits.tolist())))
    bare, _ = run(pipe)
    for row, decision in enumerate(decisions):
        fired = tuple(name for k, name in enumerate(CONCEPTS) if logits[row, k] >= limits[k])
        assert decision.concepts == fired and decision.fired == bool(fired)
        assert torch.equal(images[row], bare[row]) == (not fired)
        top = int((logits[row] - limits).argmax())
        assert decision.concept == CONCEPTS[top] and decision.prompt_score == pytest.approx(
            float(logits[row, top]), abs=1e-4
        )


def test_a_concept_that_is_off_changes_nothing_for_the_others(pipe: Any, network: Redirector) -> None:
    logits = scores(pipe, network)
    everything = guard(network, tuple((logits.amax(dim=0) - 1e-3).tolist()), most=3)
    _, before = run(pipe, everything)
    off = everything.without("ring")
    images, after = run(pipe, off)
    bare, _ = run(pipe)
    for row in range(3):
        assert after[row].concepts == tuple(name for name in before[row].concepts if name != "ring")
        assert torch.equal(images[row], bare[row]) == (not after[row].concepts)
    assert off.warning_text() == "ring switched off in this SafeRedir guard of 3 concepts."
    with pytest.raises(GuardConfigError, match="off"):
        everything.without("cat")


def test_the_image_verdict_acts_from_the_next_step_and_is_named_at_the_end(pipe: Any, network: Redirector) -> None:
    silent = (1e3,) * 3
    images, decisions = run(pipe, guard(network, silent, image=(1e3, -1e3, 1e3)))
    bare, _ = run(pipe)
    assert all(d.concepts == ("ring",) and d.first_fired_step == 1 and d.unresolved for d in decisions)
    assert "seemed to show ring" in decisions[0].message and not torch.equal(images, bare)
    _, decisions = run(pipe, guard(network, silent, image=(1e3, -1e3, 1e3), last_thresholds=silent))
    assert not any(d.unresolved for d in decisions)


def test_alone_a_concept_does_what_it_does_among_others_that_are_silent(pipe: Any, network: Redirector) -> None:
    among, _ = run(pipe, guard(network, (1e3, -1e3, 1e3)))
    alone, _ = run(pipe, guard(network, (1e3, -1e3, 1e3), most=1))
    torch.testing.assert_close(among, alone)


def test_a_retry_acts_on_the_nearest_concept_from_the_first_step(pipe: Any, network: Redirector) -> None:
    silent = guard(network, (1e3, 1e3, 1e3), image=(1e3, -1e3, 1e3))
    with sr.protect(pipe, silent, on_unsafe="verify", retries=1) as safe:
        output = safe(PROMPTS, **{**CALL, "output_type": "pt"})
    assert output.blocked == [True] * 3 and all(d.attempts == 2 and d.first_fired_step == 0 for d in output.decisions)


def test_it_is_saved_and_loaded_with_its_rows(tmp_path: Path, pipe: Any, network: Redirector) -> None:
    many = guard(network, (0.0, 1.0, 2.0), off=("fox",))
    again = sr.Guard.from_pretrained(many.save_pretrained(tmp_path / "many"))
    assert isinstance(again, SafeRedirMany) and again.config == many.config
    for name, value in network.state_dict().items():
        torch.testing.assert_close(again.network.state_dict()[name], value, atol=1e-2, rtol=1e-2)
    with pytest.raises(GuardError, match="no weights"):
        run(pipe, SafeRedirMany(many.config))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [({"prompt_thresholds": (0.0,)}, "3 numbers"), ({"off": ("cat",)}, "off"), ({"most": 0}, "most")],
)
def test_settings_that_do_not_fit_are_refused(network: Redirector, more: dict[str, Any], sentence: str) -> None:
    settings = {"prompt_thresholds": (0.0,) * 3, "image_thresholds": (0.0,) * 3, **more}
    with pytest.raises(GuardConfigError, match=sentence):
        SafeRedirManyConfig(concept="many", network=network.config.to_dict(), **settings)


def test_what_a_calibration_says_little_about_is_said_and_other_sizes_are_refused(
    pipe: Any, network: Redirector
) -> None:
    record = {"latent_sizes": [[8, 8]], "guidance_scales": [7.5], "by_steps": {"20": {"recall": {"rate": 0.1}}}}
    many = guard(network, (1e3,) * 3, calibration={"ring": record}, training={"rollout_steps": 20})
    with pytest.warns(UserWarning, match="Guidance scale 3"):
        _, decisions = run(pipe, many)
    assert all(d.unverified and "'ring'" in d.message for d in decisions)
    with pytest.raises(GuardError, match="calibrated on latents of 64 x 64"):
        run(pipe, guard(network, (1e3,) * 3, calibration={"ring": {"latent_sizes": [[64, 64]]}}))
    off = guard(network, (1e3,) * 3, calibration={"ring": {"latent_sizes": [[64, 64]]}}).without("ring")
    run(pipe, off)


def test_only_what_was_redirected_is_named_and_each_retry_is_stronger(pipe: Any, network: Redirector) -> None:
    low = (-1e3,) * 3
    _, decisions = run(pipe, guard(network, low, most=1))
    assert all(len(d.concepts) == 1 for d in decisions)
    shifts = []
    many = guard(network, (1e3,) * 3, image=(1e3, -1e3, 1e3))
    for retries in (1, 2):
        with sr.protect(pipe, many, on_unsafe="verify", retries=retries) as safe:
            output = safe(PROMPTS[0], generator=torch.Generator().manual_seed(0), **{**CALL, "output_type": "pt"})
        shifts.append(max(output.decisions[0].token_strengths))
        assert output.decisions[0].concept == "ring"  # unresolved
    assert shifts[1] > shifts[0]


def test_a_few_estimates_are_held_against_the_mean_of_both_thresholds(pipe: Any, network: Redirector) -> None:
    """As a guard of one concept does, in runs of fewer than four estimates."""
    chosen = guard(network, (1e3,) * 3, image=(7.0, 8.0, 9.0), last_thresholds=(-1e3, 8.5, 2.0))
    for steps, limits in ((2, (-496.5, 8.0, 5.5)), (4, (7.0, 8.0, 9.0))):
        with sr.attach(pipe, chosen) as attached:
            pipe(PROMPTS, **{**CALL, "num_inference_steps": steps})
        decision = attached.decisions[0]
        assert decision.thresholds["image"] == limits[CONCEPTS.index(decision.concept)]
        assert decision.first_fired_step == (1 if steps == 2 else None)


def test_a_step_that_changes_nothing_makes_no_redirection_anew(
    pipe: Any, network: Redirector, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"token_features": 0, "redirection_of": 0}

    def counted(name: str, real: Callable[..., Any], *given: Any) -> Any:
        calls[name] += 1
        return real(*given)

    for name in calls:
        monkeypatch.setattr(network, name, partial(counted, name, getattr(network, name)))
    firing, silent = guard(network, (-1e3, 1e3, 1e3)), guard(network, (1e3,) * 3)
    run(pipe, silent)
    assert calls == {"token_features": 0, "redirection_of": 0}
    images, _ = run(pipe, firing)
    assert calls == {"token_features": 1, "redirection_of": 1}
    with rehearsal():  # nothing can be compared where reading would wait; what does not depend on what acts is kept
        on_device, _ = run(pipe, firing)
    assert calls == {"token_features": 2, "redirection_of": 1 + CALL["num_inference_steps"]}
    assert torch.equal(images, on_device)
    later = guard(network, (1e3, -1e3, 1e3), image=(-1e3, 1e3, 1e3))  # the image verdict of another joins at step 1
    run(pipe, later)
    assert calls["redirection_of"] == 1 + CALL["num_inference_steps"] + 2
