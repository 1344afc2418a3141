"""What a guard's record says of it: the trainer's verdict, the warning at attach, runs outside of what was calibrated."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import make_pipeline

import saferedir as sr
from saferedir.guards.saferedir import SafeRedir, SafeRedirConfig
from saferedir.guards.saferedir.assessment import blind_image_side, verdict, warning_text, weak_at, weak_rows_text
from saferedir.guards.saferedir.network import Redirector, RedirectorConfig
from saferedir.metrics import Rate
from saferedir.training.saferedir.dataset import Pair
from saferedir.training.saferedir.recalibrate import CalibrationConfig, calibrate_guard, unpaired

NETWORK = {
    "prompt_dim": 32, "latent_channels": 4, "concepts": ["x"], "width": 32, "heads": 2, "hidden": 32,
    "latent_widths": [8, 16], "latent_strides": [1, 2],
}  # fmt: skip
RATES = {"recall": Rate(99, 100).to_dict(), "false_positives": Rate(0, 100).to_dict()}
WEAK = {"recall": Rate(30, 100).to_dict(), "false_positives": Rate(0, 100).to_dict()}
RECORD: dict[str, Any] = {
    "guidance_scales": [1.0, 4.0, 7.5], "prompt": RATES, "image": RATES, "by_steps": {"1": WEAK, "4": RATES, "20": RATES},
}  # fmt: skip
MEASURED = {
    "prompt_recall": 0.99, "prompt_false_positive_rate": 0.0, "image_recall": 0.99, "image_false_positive_rate": 0.0,
}  # fmt: skip


def config(**changes: Any) -> SafeRedirConfig:
    settings = {"concept": "x", "network": NETWORK, "prompt_threshold": 1e6, "image_threshold": 1e6}
    return SafeRedirConfig(**{**settings, "calibration": RECORD, "measured": MEASURED, **changes})


def guard(**changes: Any) -> SafeRedir:
    torch.manual_seed(0)
    chosen = config(**changes)
    return SafeRedir(chosen, Redirector(RedirectorConfig.from_dict(chosen.network)))


def test_the_verdict_is_good_or_weak_and_says_why() -> None:
    found = verdict(config())
    assert found["good"] and "finds 99 % (95 to 100, n = 100) of the images that show it" in found["why"]
    found = verdict(config(measured={**MEASURED, "image_recall": 0.31, "prompt_false_positive_rate": 0.2}))
    assert not found["good"]
    assert "image verdict misses 69% of the images" in found["why"] and "prompt verdict takes 20% of" in found["why"]


@pytest.mark.parametrize(
    ("hits", "n", "alarms", "is_blind"),
    [
        (65, 208, 0, True),
        (190, 208, 0, False),
        (183, 208, 0, False),
        (3, 10, 0, False),
        (208, 208, 20, True),
        (208, 208, 9, False),
    ],
)
def test_an_image_side_is_blind_where_the_whole_interval_says_so(
    hits: int, n: int, alarms: int, is_blind: bool
) -> None:
    rates = {"recall": Rate(hits, n).to_dict(), "false_positives": Rate(alarms, 208).to_dict()}
    chosen = config(calibration={**RECORD, "image": rates})
    assert (blind_image_side(chosen) is not None) == is_blind
    assert blind_image_side(replace(chosen, use_image=False)) is None


def test_a_weak_guard_is_said_at_attach_and_one_that_is_not_used_is_not() -> None:
    weak = {**MEASURED, "image_recall": 0.3125}  # as the packaged emblem's config had it
    with pytest.warns(UserWarning, match="'x' is weak.*misses 69% of the images.*guards calibrate"):
        sr.attach(make_pipeline(), guard(measured=weak))
    assert warning_text(config(measured=weak, use_image=False)) is None and warning_text(config(measured={})) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sr.attach(make_pipeline(), guard())


@pytest.mark.parametrize(
    ("scale", "is_outside"), [(0.0, False), (1.0, False), (4.0, False), (7.5, False), (7.6, True), (12.0, True)]
)
def test_a_guidance_scale_that_was_never_calibrated_is_said_once_a_run_and_in_the_decision(
    scale: float, is_outside: bool
) -> None:
    pipe = make_pipeline()
    with sr.attach(pipe, guard()) as attached, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pipe(["a", "b"], num_inference_steps=3, guidance_scale=scale, output_type="latent")
    texts = [str(warning.message) for warning in seen if "Guidance scale" in str(warning.message)]
    assert len(texts) == is_outside
    assert all(("outside of what the thresholds" in d.message) == is_outside for d in attached.decisions)
    assert all("1 to 7.5" in text for text in texts)


def test_an_older_record_knows_the_scale_of_its_training_alone() -> None:
    old = guard(calibration={}, training={"guidance_scale": 4.0, "rollout_steps": 20})
    pipe = make_pipeline()
    with sr.attach(pipe, old) as attached, pytest.warns(UserWarning, match="7.5 lies outside.*\\(4\\)"):
        pipe(["a"], num_inference_steps=6, guidance_scale=7.5, output_type="latent")
    assert not attached.decisions[0].unverified


@pytest.mark.parametrize(("steps", "is_weak"), [(1, True), (3, True), (4, False), (50, False)])
def test_verify_without_a_verifier_is_refused_where_the_last_verdict_is_weak(steps: int, is_weak: bool) -> None:
    pipe = make_pipeline()
    call = {"num_inference_steps": steps, "guidance_scale": 4.0, "output_type": "pt"}
    guarded = sr.protect(pipe, guard(), on_unsafe="verify")
    if is_weak:
        with pytest.raises(sr.GuardError, match=r"nothing to verify with.*nothing checks the redirected image"):
            guarded(["a"], **call)
    else:
        assert not guarded(["a"], **call).decisions[0].unverified
    guarded.detach()
    with sr.protect(pipe, guard(), on_unsafe="verify", verify=lambda images: [False] * len(images)) as guarded:
        assert guarded(["a"], **call).decisions[0].unverified == is_weak
    with sr.protect(pipe, guard()) as guarded:
        assert ("nothing checks the redirected image" in guarded(["a"], **call).decisions[0].message) == is_weak


def test_what_was_measured_decides_how_few_steps_are_too_few() -> None:
    assert weak_at(config(calibration={}, training={"rollout_steps": 20}), 4) is not None
    assert weak_at(config(calibration={}, training={"rollout_steps": 20}), 5) is None
    assert weak_at(config(calibration={}, training={}, measured={}), 1) is None  # nobody recorded anything
    assert weak_at(config(calibration={}, measured={**MEASURED, "image_recall": 0.3}), 30) is not None
    assert weak_at(config(calibration={**RECORD, "by_steps": {"4": WEAK, "20": RATES}}), 19) is not None
    assert weak_at(config(calibration={**RECORD, "by_steps": {"8": RATES}}), 5) is not None  # never measured


def test_unresolved_is_decided_by_the_threshold_of_the_last_check() -> None:
    pipe = make_pipeline()
    always = guard(last_threshold=-1e6)
    with sr.attach(pipe, always) as attached:
        pipe(["a"], num_inference_steps=3, guidance_scale=4.0, output_type="latent")
    decision = attached.decisions[0]
    assert decision.unresolved and not decision.fired and decision.thresholds["last"] == -1e6


@pytest.mark.parametrize(
    ("steps", "fires_at", "is_late"), [(4, 0, False), (4, 1, True), (2, 0, True), (8, 1, False), (8, 2, True)]
)
def test_a_redirection_that_began_late_leaves_the_image_unresolved(steps: int, fires_at: int, is_late: bool) -> None:
    """It acts from the step after: in a run of 4 steps, fired at step 0, from step 1, which is a quarter."""

    class Fires(Redirector):
        checks = 0

        def image_logits(self, frames: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            self.checks += 1
            return torch.full((len(frames), 1), 1.0 if self.checks - 1 == fires_at else -1.0)

    chosen = config(image_threshold=0.0, calibration={}, measured={})
    late = SafeRedir(chosen, Fires(RedirectorConfig.from_dict(chosen.network)))
    pipe = make_pipeline()
    with sr.attach(pipe, late) as attached:
        pipe(["a"], num_inference_steps=steps, guidance_scale=4.0, output_type="latent")
    decision = attached.decisions[0]
    assert decision.first_fired_step == fires_at + 1 and decision.unresolved == is_late
    assert ("layout" in decision.message) == is_late


def test_calibrating_keeps_the_weights_and_writes_thresholds_fingerprint_and_record(tmp_path: Path) -> None:
    pipe, old = make_pipeline(), guard(calibration={}, training={"guidance_scale": 4.0})
    rows = unpaired([f"x {i}" for i in range(30)], [f"b {i}" for i in range(40)])
    assert sum(row.unsafe is not None for row in rows) == 30 and len({row.safe for row in rows}) == 40
    settings = CalibrationConfig(rollouts=48, steps=3, guidance_scales=(1.0, 4.0))
    new = calibrate_guard(pipe, old, rows, config=settings, work=tmp_path / "work", is_paired=False)
    assert all(torch.equal(value, new.tensors()[name]) for name, value in old.tensors().items())
    record = new.config.calibration
    assert (record["benign"], record["unsafe"], record["steps"]) == (24, 24, 3)
    assert record["guidance_scales"] == [1.0, 4.0] and set(record["by_guidance"]) == {"1", "4"}
    assert set(record["by_steps"]) == {"1", "2", "3"} and record["image"]["recall"]["n"] == 24
    assert (
        new.config.backbone is not None and new.config.image_threshold < 1e6 and new.config.last_threshold is not None
    )
    assert "distance" not in new.config.measured and "verdict" in record
    again = sr.Guard.from_pretrained(new.save_pretrained(tmp_path / "new"))
    assert again.config == new.config and "Chosen on 24 benign" in (tmp_path / "new" / "README.md").read_text()
    only = calibrate_guard(pipe, old, rows, config=replace(settings, verdicts=("image",)), is_paired=False)
    assert only.config.prompt_threshold == 1e6 and only.config.calibration["prompt"]["rule"] == "kept"
    assert only.config.image_threshold == new.config.image_threshold
    with pytest.raises(sr.GuardConfigError, match="unfinished calibration"):
        calibrate_guard(pipe, old, rows, config=replace(settings, seed=1), work=tmp_path / "work", is_paired=False)


def test_too_few_prompts_and_other_guards_are_refused() -> None:
    with pytest.raises(sr.GuardConfigError, match="only 3 unsafe prompts"):
        calibrate_guard(make_pipeline(), guard(), [Pair(f"x{i}", f"o{i}") for i in range(3)])
    with pytest.raises(sr.GuardConfigError, match="no thresholds to calibrate"):
        calibrate_guard(make_pipeline(), sr.Guard.from_pretrained("pictoworld/star-duo"), [])  # type: ignore[arg-type]


def test_weak_rows_are_named_weakest_first_with_their_count() -> None:
    recalls = {"a": 0.95, "b": 0.5, "c": 0.89, "d": 0.1, "e": 0.3}
    rows = [SafeRedirConfig(concept=name, measured={"image_recall": recall}) for name, recall in recalls.items()]
    text = weak_rows_text("this guard", rows)
    assert text is not None and text.startswith("4 of 5 concepts are weak in this guard by its own record, such as d (")
    assert re.findall(r"(\w) \(the image verdict misses (\d+)%", text) == [("d", "90"), ("e", "70"), ("b", "50")]
    assert (
        "such as" not in str(weak_rows_text("this guard", rows[:2])) and weak_rows_text("this guard", rows[:1]) is None
    )
    of_prompts = SafeRedirConfig(concept="p", measured={"prompt_recall": 0.2})
    assert "p (the prompt verdict misses 80%" in str(weak_rows_text("this guard", [*rows, of_prompts]))
