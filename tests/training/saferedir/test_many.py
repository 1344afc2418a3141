"""One guard for many concepts, trained and grown on a tiny random pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import make_pipeline
from tests.watched import Watched
from typer.testing import CliRunner

import saferedir as sr
from saferedir.cli import app
from saferedir.errors import GuardConfigError
from saferedir.guards.saferedir_many import SafeRedirMany
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.training.saferedir import many as many_module
from saferedir.training.saferedir.batches import ImageData
from saferedir.training.saferedir.dataset import Pair, write_pairs
from saferedir.training.saferedir.many import train_saferedir_many
from saferedir.training.saferedir.train_config import TrainConfig
from saferedir.training.uce.train import TrainConfig as UCETrainConfig
from saferedir.training.uce.train import make_uce

WORDS = [f"{a}{b}" for a in "abcdefgh" for b in "klmnop"]
QUICK = TrainConfig(
    steps=8, rollouts=8, held_out_rollouts=8, rollout_steps=3, held_out=0.4, evaluate_every=4,
    network={"width": 32, "heads": 2, "hidden": 32, "latent_widths": [8, 16], "latent_strides": [1, 2], "rank": 8},
)  # fmt: skip


def pairs(letter: str) -> list[Pair]:
    return [Pair(f"{w} {letter}", f"{w} o") for w in WORDS] + [Pair(None, f"{w} b") for w in WORDS]


def test_concepts_are_trained_together_and_added_without_touching_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe: Any = make_pipeline()
    watched = Watched()
    guard = train_saferedir_many(
        pipe, {"x": pairs("x"), "y": pairs("y")}, tmp_path / "two", config=QUICK, progress=watched
    )
    for side in ("training images", "held-out images"):
        _, total, done = [step for step in watched.steps if step[0] == side][-1]
        assert done == total
    assert guard.config.concepts == ("x", "y") and set(guard.config.calibration) == {"x", "y"}
    assert not (tmp_path / "two.work").exists()
    loaded = sr.Guard.from_pretrained(tmp_path / "two")
    assert isinstance(loaded, SafeRedirMany)

    fit = many_module.fit_rows

    def killed(*given: Any, **more: Any) -> None:
        fit(*given, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(many_module, "fit_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        train_saferedir_many(pipe, {"z": pairs("z")}, tmp_path / "three", start=loaded, config=QUICK)
    monkeypatch.undo()
    grown = train_saferedir_many(pipe, {"z": pairs("z")}, tmp_path / "three", start=loaded, config=QUICK)
    assert grown.config.concepts == ("x", "y", "z")
    assert grown.config.prompt_thresholds[:2] == loaded.config.prompt_thresholds
    before, after = loaded.network.state_dict(), grown.network.state_dict()
    for name, value in before.items():
        rows = (
            after[name][: len(value)] if not name.endswith((".weight", ".bias")) or "heads" not in name else after[name]
        )
        same = rows[:2] if name.startswith("heads.") else rows
        assert torch.equal(same, value[:2] if name.startswith("heads.") else value), name
    assert not torch.equal(after["heads.prompt_score.weight"][2], before["heads.prompt_score.weight"][2])

    def decisions(which: SafeRedirMany) -> list[Any]:
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        with sr.attach(pipe, which.without("z") if "z" in which.config.concepts else which) as attached:
            pipe(["ak x", "bl y", "cm o"], generator=generators, num_inference_steps=3, output_type="latent")
            return [(d.concepts, d.fired, d.first_fired_step, d.unresolved) for d in attached.decisions]

    assert decisions(loaded) == decisions(grown)
    with pytest.raises(GuardConfigError, match="has 'x' already"):
        train_saferedir_many(pipe, {"x": pairs("x")}, tmp_path / "again", start=loaded, config=QUICK)


def test_a_concept_with_too_few_pairs_is_named(tmp_path: Path) -> None:
    with pytest.raises(GuardConfigError, match="'y' has too few pairs"):
        train_saferedir_many(make_pipeline(), {"x": pairs("x"), "y": pairs("y")[:8]}, tmp_path / "two", config=QUICK)


def test_the_command_line_trains_and_adds(tmp_path: Path) -> None:
    def call(*words: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["train", "saferedir-many", *map(str, words)])
        return result.exit_code, " ".join(result.output.split())

    make_pipeline().save_pretrained(tmp_path / "model")
    for letter in "xyz":
        write_pairs(pairs(letter), tmp_path / f"{letter}.jsonl")
    files = {letter: f"{letter}={tmp_path / letter}.jsonl" for letter in "xyz"}
    sizes = ("--steps", 2, "--rollouts", 4, "--held-out-rollouts", 8, "--rollout-steps", 3)
    common = ("--model", tmp_path / "model", *sizes, "--call", "guidance_rescale=0.0")
    code, output = call("--pairs", files["x"], "--pairs", files["y"], *common, "--out", tmp_path / "two")
    assert code == 0, output
    assert "2 concepts, held out" in output and (tmp_path / "two" / "summary.json").is_file()
    code, output = call("--start", tmp_path / "two", "--pairs", files["z"], *common, "--out", tmp_path / "three")
    assert code == 0, output
    assert sr.Guard.from_pretrained(tmp_path / "three").config.concepts == ("x", "y", "z")  # type: ignore[attr-defined]
    assert call("--pairs", "x", *common, "--out", tmp_path / "no")[0] == 2
    code, output = call("--start", "pictoworld/star", "--pairs", files["z"], *common, "--out", tmp_path / "no")
    assert code == 2 and "not one of many concepts" in output.replace("│ ", "") and not (tmp_path / "no").exists()


def test_a_start_of_another_model_is_refused(tmp_path: Path) -> None:
    pipe: Any = make_pipeline()
    guard = train_saferedir_many(pipe, {"x": pairs("x")}, tmp_path / "one", config=QUICK)
    with torch.no_grad():
        pipe.unet.conv_in.weight.add_(1.0)
    with pytest.raises(GuardConfigError, match="trained on other weights"):
        train_saferedir_many(pipe, {"y": pairs("y")}, tmp_path / "two", start=guard, config=QUICK)


def test_a_concept_whose_image_side_cannot_tell_is_written_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those that were there already keep nobody from adding others."""
    monkeypatch.setattr(
        many_module, "blind_image_side", lambda row: "the image verdict misses it" if row.concept == "x" else None
    )
    pipe, out, both = make_pipeline(), tmp_path / "two", {"x": pairs("x"), "y": pairs("y")}
    with pytest.raises(GuardConfigError, match=r"1 of 2 concepts .*, of 'x' the image verdict misses it; .*--force"):
        train_saferedir_many(pipe, both, out, config=QUICK, keep_weak=False)
    assert not out.exists() and (tmp_path / "two.work").exists()
    guard = train_saferedir_many(pipe, both, out, config=QUICK)
    assert out.exists() and not (tmp_path / "two.work").exists()
    train_saferedir_many(pipe, {"z": pairs("z")}, tmp_path / "three", start=guard, config=QUICK, keep_weak=False)


def test_benign_images_are_those_of_the_concepts_own_pairs() -> None:
    frames = torch.zeros(3, 2, 4, 8, 8)
    data = ImageData(frames, PromptEmbeds(torch.zeros(3, 5, 6)), torch.zeros(3), torch.zeros(2))
    shared = many_module.Benign(data, ["a red ring", "a blue circle", "a fox"])
    assert len(shared.of([Pair("a star", "a red ring"), Pair(None, "a fox")]).label) == 2
    assert len(shared.of([Pair("a ring", "a blue circle")]).label) == 1


def test_a_mistyped_argument_of_the_call_is_named(tmp_path: Path) -> None:
    config = replace(QUICK, call={"heights": 64})
    with pytest.raises(GuardConfigError, match="'heights'; did you mean 'height'"):
        train_saferedir_many(make_pipeline(), {"x": pairs("x")}, tmp_path / "x", config=config)
    with pytest.raises(GuardConfigError, match="'heights'; did you mean 'height'"):
        make_uce(make_pipeline(), pairs("x"), concept="x", config=UCETrainConfig(call={"heights": 64}))
