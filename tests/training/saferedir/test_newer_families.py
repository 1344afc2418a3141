"""A guard can be trained on every family, whatever the lengths of its prompts, and is heard there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract.guards import shared_pipeline
from tests.contract.plan import NEWER_FAMILIES
from tests.newer_pipelines import NEWER
from tests.tiny_pipelines import PipelineCase, run

import saferedir as sr
from saferedir.errors import GuardConfigError
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families import FAMILIES
from saferedir.training.saferedir import batches
from saferedir.training.saferedir.batches import encode_text
from saferedir.training.saferedir.dataset import Pair, encode_on_cpu
from saferedir.training.saferedir.train import train_saferedir
from saferedir.training.saferedir.train_config import TrainConfig

#: words of several lengths, the unsafe side now the longer one and now the shorter
#: and one that fills the longest prompt that is read, so that nothing pads it
PAIRS = [Pair(f"a star {'b' * n}", f"{'d' * (n % 3)} c {'b' * n}") for n in range(1, 31)] + [Pair(None, "e" * 40)]
TRAINED = [family for family in NEWER_FAMILIES if not FAMILIES[family].encoder_reads_image]


def config_for(case: PipelineCase) -> TrainConfig:
    """The shortest training; PRX generates one image a call where it guides."""
    call = {name: value for name, value in case.settings.items() if name != "guidance_scale"}
    return TrainConfig(
        steps=2, batch=8, rollouts=2, held_out_rollouts=2, rollout_steps=1, held_out=0.4, evaluate_every=2,
        rollout_batch=1 if case.family == "prx" else 2, call=call,
        network={"width": 32, "heads": 2, "hidden": 32, "latent_widths": [8, 16], "latent_strides": [1, 2]},
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", TRAINED)
def test_a_guard_trained_on_prompts_of_many_lengths_acts(family: str, tmp_path: Path) -> None:
    case = next(case for case in NEWER.values() if case.family == family)
    pipe = shared_pipeline(case.name)
    config = config_for(case)
    guard: Any = train_saferedir(pipe, PAIRS, tmp_path / "guard", concept="star", config=config, keep_weak=True)
    bare = run(case, pipe, "a star", steps=2)
    for threshold in (1e6, -1e6):
        with sr.attach(pipe, guard.with_settings(prompt_threshold=threshold, image_threshold=1e6)) as attached:
            guarded = run(case, pipe, "a star", steps=2)
        assert torch.equal(guarded, bare) is (threshold > 0)
        assert attached.decisions[0].fired is (threshold < 0)


@pytest.mark.parametrize("name", ["qwen-image", "cogview-4"])
def test_more_prompts_than_are_encoded_at_once_are_the_same_prompts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, prompts = shared_pipeline(name), ["a", "b", "a star " * 4]
    whole = encode_on_cpu(pipe, prompts)
    monkeypatch.setattr("saferedir.training.saferedir.dataset.ENCODED_AT_ONCE", 2)
    encode = "saferedir.pipelines.encoding.encode_prompts.__defaults__"
    monkeypatch.setattr(encode, (None, 2))
    parts = encode_on_cpu(pipe, prompts)
    torch.testing.assert_close(parts.prompt, whole.prompt)
    assert whole.mask is None or torch.equal(parts.mask.bool(), whole.mask.bool())  # type: ignore[union-attr]


def test_prompts_as_long_as_the_longest_of_a_batch_are_trained_at_the_lengths_of_shorter_batches() -> None:
    """CogView4: multiples of 16 tokens, padded on the left, without a mask."""
    pipe = shared_pipeline("cogview-4")
    pairs = [Pair("a star", "a c"), Pair("a star " + "b" * 20, "a c"), Pair(None, "e" * 40), Pair(None, "d")]
    text = encode_text(pipe, pairs)
    sizes = [(side.unsafe.prompt.shape[:2], side.benign.prompt.shape[:2]) for side in text.lengths]
    assert sizes == [((2, 48), (4, 48)), ((1, 16), (2, 16))]
    (short,) = text.others
    torch.testing.assert_close(short.benign.prompt, encode_on_cpu(pipe, ["a c", "d"]).prompt)


@pytest.mark.parametrize("has_counts", [True, False])
def test_lengths_of_prompts_come_from_the_tokenizer_and_are_those_of_encoding_each(
    has_counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in a while a prompt is encoded, for how the pipeline pads; each where there is no count."""
    pipe = shared_pipeline("cogview-4")
    pairs = [Pair("a " * n, "a b") if n % 3 else Pair(None, "c " * n) for n in range(1, 40)]
    each = [
        int(encode_on_cpu(pipe, [text for text in (pair.unsafe, pair.safe) if text], None).prompt.shape[1])
        for pair in pairs
    ]
    encoded: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> PromptEmbeds:
        encoded.append(len(args[1]))
        return encode_on_cpu(*args, **kwargs)

    monkeypatch.setattr(batches, "encode_on_cpu", counted)
    if not has_counts:
        monkeypatch.setattr(batches, "token_counts", lambda *args: None)
    assert batches._lengths_alone(pipe, pairs, None) == each and len(set(each)) > 1
    assert len(encoded) == len(pairs) if not has_counts else len(encoded) < len(pairs) / 2


def test_pipelines_whose_text_encoder_reads_an_image_are_refused_before_anything_is_generated(tmp_path: Path) -> None:
    with pytest.raises(GuardConfigError, match="reads an input image with each prompt"):
        train_saferedir(shared_pipeline("qwen-image-edit"), PAIRS, tmp_path / "guard", concept="star")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_where_a_scheduler_cannot_do_one_step_it_is_not_calibrated_for_it_and_such_a_run_is_refused(
    tmp_path: Path,
) -> None:
    """Qwen-Image as published: `shift_terminal` stretches a schedule by its last time, and a schedule of one step has none."""
    case = NEWER["qwen-image"]
    pipe = case.build()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift_terminal=0.02)
    config = replace(config_for(case), rollout_steps=3)
    guard: Any = train_saferedir(pipe, PAIRS, tmp_path / "guard", concept="star", config=config, keep_weak=True)
    assert set(guard.config.calibration["by_steps"]) == {"2", "3"}
    with sr.attach(pipe, guard), pytest.raises(sr.GuardError, match="has no timesteps for this run"):
        run(case, pipe, steps=1)
