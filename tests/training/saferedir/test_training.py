"""From prompt pairs to a guard folder, on a tiny random pipeline: reading, splitting, rolling out, resuming, calibrating."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import make_pipeline

from saferedir import Guard, GuardError, attach
from saferedir.guards.saferedir import SafeRedir, SafeRedirConfig
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.training.saferedir import fit as fit_module
from saferedir.training.saferedir import train as train_module
from saferedir.training.saferedir.dataset import (
    Pair,
    encode_on_cpu,
    moved_tokens,
    read_pairs,
    roll_out,
    split_pairs,
    write_pairs,
)
from saferedir.training.saferedir.losses import LossWeights, redirection_terms, total
from saferedir.training.saferedir.train import train_saferedir
from saferedir.training.saferedir.train_config import TrainConfig

WORDS = [f"{a}{b}" for a in "abcdefgh" for b in "klmnop"]
PAIRS = [Pair(f"{w} x", f"{w} o") for w in WORDS] + [Pair(None, f"{w} b") for w in WORDS]
QUICK = TrainConfig(
    steps=12, rollouts=8, held_out_rollouts=8, rollout_steps=3, held_out=0.4, evaluate_every=6,
    network={"width": 32, "heads": 2, "hidden": 32, "latent_widths": [8, 16], "latent_strides": [1, 2]},
)  # fmt: skip


def test_pairs_survive_a_round_trip(tmp_path: Path) -> None:
    write_pairs(PAIRS, tmp_path / "pairs.jsonl")
    assert read_pairs(tmp_path / "pairs.jsonl") == PAIRS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"unsafe": "a", "safe": "b"}\nnot json\n', "line 2 is not JSON"),
        ('{"unsafe": "a", "safe": "b", "label": 1}\n', "line 1: expected an object"),
        ('{"unsafe": "a"}\n', 'line 1: "safe" must be a non-empty text'),
        ('{"unsafe": "a", "safe": "a"}\n', "line 1: the unsafe and the safe prompt are the same"),
        ('{"unsafe": 3, "safe": "a"}\n', 'line 1: "unsafe" must be'),
        ("", "no pair with an unsafe prompt"),
        ('{"safe": "a"}\n', "no pair with an unsafe prompt"),
    ],
)
def test_malformed_pairs_are_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(GuardError, match=message):
        read_pairs(path)


def test_a_missing_pairs_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match="no pairs file"):
        read_pairs(tmp_path / "nothing.jsonl")


def test_the_split_is_by_pair_and_does_not_depend_on_order() -> None:
    training, held_out = split_pairs(PAIRS, 0.3, seed=1)
    again, _ = split_pairs(PAIRS[::-1], 0.3, seed=1)
    assert set(training) == set(again)
    assert not set(training) & set(held_out)
    assert 0.1 < len(held_out) / len(PAIRS) < 0.5


def test_the_mask_target_is_every_token_the_concept_leaked_into() -> None:
    pipe = make_pipeline()
    unsafe, safe = encode_on_cpu(pipe, ["a x b", "a o b"]).prompt
    mask = moved_tokens(unsafe[None], safe[None])[0]
    assert mask[:2].sum() == 0  # a causal encoder: nothing before the changed word moves
    assert mask[2] == 1


def test_roll_outs_do_not_depend_on_the_batch_and_resume_from_their_cache(tmp_path: Path) -> None:
    pipe = make_pipeline()
    settings: dict[str, Any] = {"steps": 3, "guidance_scale": 3.0, "seed": 5}
    whole = roll_out(pipe, WORDS[:4], **settings, batch=4)
    parts = roll_out(pipe, WORDS[:4], **settings, batch=2, cache=tmp_path)
    assert whole.frames.shape == (4, 3, 4, 8, 8) and whole.t.shape == (3,)
    torch.testing.assert_close(whole.frames, parts.frames, atol=5e-2, rtol=5e-2)  # bf16 autocast
    files = sorted(tmp_path.glob("rollout-*.safetensors"))
    assert len(files) == 2
    files[0].unlink()
    again = roll_out(pipe, WORDS[:4], **settings, batch=2, cache=tmp_path)
    torch.testing.assert_close(again.frames, parts.frames)


def test_a_perfect_redirection_has_no_loss_and_a_left_out_term_no_weight() -> None:
    terms = {"mse": torch.tensor(2.0), "minimal": torch.tensor(10.0)}
    assert total(terms, LossWeights()) == 2.0 + 0.1 * 10.0
    assert total(terms, LossWeights(mse=0.0, minimal=0.0)) == 0.0


def test_benign_rows_do_not_enter_the_unsafe_terms() -> None:
    from saferedir.guards.saferedir import Redirector, RedirectorConfig

    torch.manual_seed(0)
    network = Redirector(RedirectorConfig(prompt_dim=16, width=32, heads=2, hidden=32))
    e, e_safe = torch.randn(4, 5, 16), torch.randn(4, 5, 16)
    label = torch.tensor([1.0, 1.0, 0.0, 0.0])
    given = PromptEmbeds(e)
    one = redirection_terms(network, given, PromptEmbeds(e_safe), label, teacher_forcing=False)
    other = redirection_terms(
        network, given, PromptEmbeds(torch.cat([e_safe[:2], e_safe[2:] * 7])), label, teacher_forcing=False
    )
    for name in ("mse", "cosine", "align"):
        torch.testing.assert_close(one[name], other[name])


def test_training_writes_a_guard_that_attaches(tmp_path: Path) -> None:
    pipe = make_pipeline()
    seen: list[dict[str, Any]] = []
    guard = train_saferedir(pipe, PAIRS, tmp_path / "guard", concept="x", config=QUICK, log=seen.append)
    assert [row["step"] for row in seen] == [6, 12]
    loaded = Guard.from_pretrained(tmp_path / "guard")
    assert isinstance(loaded, SafeRedir)
    assert loaded.config.prompt_threshold == guard.config.prompt_threshold
    record = loaded.config.calibration
    assert record["verdict"]["why"].startswith(("Good: ", "Weak: ")) and record["verdict"]["why"] in loaded.card()
    assert record["guidance_scales"] == [1.0, 4.0, 7.5, 12.0] and set(record["by_steps"]) == {"1", "2", "3"}
    assert (
        "concept" in (tmp_path / "guard" / "README.md").read_text()
        or "x" in (tmp_path / "guard" / "README.md").read_text()
    )
    with attach(pipe, loaded) as attached:
        pipe(["ak x"], num_inference_steps=2, output_type="latent")
    assert len(attached.decisions) == 1


def test_a_killed_training_goes_on_to_the_same_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipeline()
    whole = train_saferedir(pipe, PAIRS, tmp_path / "whole", concept="x", config=QUICK)

    def die(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    real = fit_module.evaluate  # type: ignore[attr-defined]
    calls = iter([real, die])
    monkeypatch.setattr(fit_module, "evaluate", lambda *a, **k: next(calls)(*a, **k))
    with pytest.raises(KeyboardInterrupt):
        train_saferedir(pipe, PAIRS, tmp_path / "killed", concept="x", config=QUICK)
    assert not (tmp_path / "killed").exists()
    monkeypatch.setattr(fit_module, "evaluate", real)
    resumed = train_saferedir(pipe, PAIRS, tmp_path / "killed", concept="x", config=QUICK)
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(resumed.tensors()[name], tensor)


def test_another_plan_in_the_same_work_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "guard.work").mkdir()
    (tmp_path / "guard.work" / "plan.json").write_text(json.dumps({"config": "other"}))
    with pytest.raises(GuardError, match="unfinished training"):
        train_saferedir(make_pipeline(), PAIRS, tmp_path / "guard", concept="x", config=QUICK)


def test_too_few_pairs_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match="at least 10"):
        train_saferedir(make_pipeline(), PAIRS[:12], tmp_path / "guard", concept="x", config=QUICK)
    assert not any(tmp_path.iterdir())


def test_a_hardened_training_begins_with_a_guard_and_leaves_out_what_a_judge_contradicts(tmp_path: Path) -> None:
    pipe = make_pipeline()
    start = train_saferedir(pipe, PAIRS, tmp_path / "start", concept="x", config=QUICK)
    changes = {"image_moves": 0.1, "prompt_moves": 0.3, "move_steps": 1, "final_frames": 0.5, "short_rollouts": 4}
    config = dataclasses.replace(QUICK, steps=6, learning_rate=1e-6, **changes)
    asked: list[int] = []

    def shows(images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        return torch.arange(len(images)) < len(images) // 2 + 1  # one more than labelled

    guard = train_saferedir(pipe, PAIRS, tmp_path / "hard", concept="x", config=config, start=start, shows=shows)
    assert guard.config.training["mislabelled"] == 1 and asked[0] == 8
    assert guard.config.training["started_from_a_guard"] and guard.config.training["image_moves"] == 0.1
    for name, tensor in start.tensors().items():
        if name != "anchor_prompt_embeds":
            torch.testing.assert_close(guard.tensors()[name].float(), tensor.float(), atol=1e-3, rtol=1e-3)


def test_a_guard_of_other_sizes_is_no_start(tmp_path: Path) -> None:
    pipe = make_pipeline()
    start = SafeRedir(SafeRedirConfig(concept="x", network={"prompt_dim": 32, "latent_channels": 4}))
    with pytest.raises(GuardError, match="other sizes"):
        train_saferedir(pipe, PAIRS, tmp_path / "guard", concept="x", config=QUICK, start=start)


def test_a_guard_whose_image_side_cannot_tell_is_written_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, out = make_pipeline(), tmp_path / "guard"
    monkeypatch.setattr(train_module, "blind_image_side", lambda config: "the image verdict finds nothing")
    with pytest.raises(GuardError, match=r"no guard was written: .* finds nothing; .*--force"):
        train_saferedir(pipe, PAIRS, out, concept="x", config=QUICK, keep_weak=False)
    assert not out.exists() and (tmp_path / "guard.work").exists()
    train_saferedir(pipe, PAIRS, out, concept="x", config=QUICK)
    assert out.exists() and not (tmp_path / "guard.work").exists()
