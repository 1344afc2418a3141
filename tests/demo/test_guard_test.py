"""One guard on one's own prompts: attached once, the same noise with and without it, images and videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.conftest import make_pipeline
from tests.tiny.dits import make_wan
from tests.tiny.parts import T5_WIDTH
from tests.watched import Watched

from saferedir.demo import guard_test
from saferedir.demo.guard_test import run_guard_test
from saferedir.errors import GuardError
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.guard import SafeRedir
from saferedir.guards.saferedir.network import Redirector, RedirectorConfig

PROMPTS = {"forget": ["a star", "two stars", "a red star"], "retain": ["a heart", "a house"]}


def make_guard(threshold: float, **network: Any) -> SafeRedir:
    """Random weights; fires where the threshold is low."""
    torch.manual_seed(0)
    network = {"prompt_dim": 32, "concepts": ["star"], **network}
    config = SafeRedirConfig(concept="star", network=network, prompt_threshold=threshold, image_threshold=1e9)
    return SafeRedir(config, Redirector(RedirectorConfig.from_dict(network)))


def test_a_silent_guard_changes_nothing_and_a_firing_one_fails_on_what_it_changed(tmp_path: Path) -> None:
    pipe, watched, call = make_pipeline(), Watched(), {"num_inference_steps": 2}
    silent = run_guard_test(
        pipe, make_guard(1e9), **PROMPTS, out=tmp_path, name="silent", call=call, batch=2, progress=watched
    )
    assert not any(case.changed or case.fired for case in silent.cases)
    assert {case.kind for case in silent.failures} == {"forget"}  # it did not act
    assert watched.steps[-1] == ("generating", 10, 10)
    assert [case.seed for case in sorted(silent.cases, key=lambda case: case.before)] == list(range(5))
    firing = run_guard_test(pipe, make_guard(-1e9), **PROMPTS, out=tmp_path, name="firing", call=call, batch=2)
    assert all(case.changed and case.fired for case in firing.cases)
    assert {case.kind for case in firing.failures} == {"retain"}
    for case in firing.cases:
        assert (tmp_path / case.before).read_bytes() != (tmp_path / case.after).read_bytes()


def test_the_guard_is_attached_once_and_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, attachments = make_pipeline(), []
    attach = guard_test.attach  # type: ignore[attr-defined]
    monkeypatch.setattr(guard_test, "attach", lambda *args: attachments.append(args) or attach(*args))
    run_guard_test(pipe, make_guard(-1e9), **PROMPTS, out=tmp_path, name="x", call={"num_inference_steps": 1}, batch=1)
    assert len(attachments) == 1
    with attach(pipe, make_guard(1e9)) as attached:  # nothing is left there
        assert len(attached.guards) == 1


def test_videos_are_judged_frame_by_frame(tmp_path: Path) -> None:
    judged: list[int] = []

    def verifier(frames: Sequence[Image.Image]) -> list[bool]:
        judged.append(len(frames))
        return [
            len(judged) % 2 == 0 and i == len(frames) - 1 for i in range(len(frames))
        ]  # the second video's last frame

    guard = make_guard(-1e9, prompt_dim=T5_WIDTH, latent_channels=16)
    call = {"num_inference_steps": 1, "height": 32, "width": 48, "num_frames": 5}
    result = run_guard_test(
        make_wan(), guard, ["a star"], ["a heart"], tmp_path, name="x", verifier=verifier, judge="j", call=call, batch=2
    )
    assert judged == [5, 5, 5, 5]  # a call for each video: all their frames at once are too many
    shown = {case.prompt: case.shown_after for case in result.cases}
    assert shown == {"a star": False, "a heart": True}
    for case in result.cases:
        with Image.open(tmp_path / case.after) as video:
            assert case.after.endswith(".webp") and video.size == (48, 32)


def test_images_are_judged_a_batch_at_a_time(tmp_path: Path) -> None:
    judged: list[int] = []

    def verifier(images: Sequence[Image.Image]) -> list[bool]:
        judged.append(len(images))
        return [True] * len(images)

    call = {"num_inference_steps": 1}
    result = run_guard_test(
        make_pipeline(), make_guard(1e9), **PROMPTS, out=tmp_path, name="x", verifier=verifier, judge="j", call=call
    )
    assert judged == [4, 1, 4, 1] and all(case.shown_after for case in result.cases)


def test_without_a_judge_the_guards_own_word_must_be_worth_something(tmp_path: Path) -> None:
    guard = make_guard(0.0)
    guard.may_be_unresolved = False  # type: ignore[misc]
    with pytest.raises(GuardError, match="give a verifier"):
        run_guard_test(make_pipeline(), guard, **PROMPTS, out=tmp_path, name="x")
