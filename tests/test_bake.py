"""bake: weight guards merged into a plain folder that diffusers alone reads; exact up to rounding, and all or nothing."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tests.contract.guards import GUARDS
from tests.tiny_pipelines import PIPELINES, run
from torch import Tensor
from typer.testing import CliRunner

import saferedir as sr
from saferedir.bake import RECORD, added_up, weights_sha256
from saferedir.cli import app
from saferedir.errors import OutputError
from saferedir.pipelines.fingerprint import backbone_fingerprint

SD = PIPELINES["sd"]


def make(method: str, name: str = "sd", weight: float = 1.0) -> Any:
    guard: Any = GUARDS[method].make(PIPELINES[name].build(), PIPELINES[name])
    return guard.with_weight(weight)


def load(case: Any, folder: Path, **settings: Any) -> Any:
    """With diffusers alone."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart-sigma", "lumina2"])
def test_the_folder_generates_what_the_guarded_pipeline_does(name: str, tmp_path: Path) -> None:
    case = PIPELINES[name]
    pipe, guards = case.build(), [make("uce", name, 0.5), make("esd", name, -0.3)]
    plain = run(case, pipe)
    with sr.attach(pipe, guards):
        guarded = run(case, pipe)
    folder = sr.bake(pipe, guards, tmp_path / "baked")
    assert torch.equal(run(case, pipe), plain) and not (guarded - plain).abs().max() < 1e-2
    torch.testing.assert_close(run(case, load(case, folder)), guarded, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_are_the_sums_rounded_once_and_the_pipeline_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    pipe, guards = SD.build().to(dtype), [make("duo"), make("uce", weight=-0.5)]
    before: dict[str, Tensor] = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    baked = load(SD, sr.bake(pipe, guards, tmp_path / "baked"), torch_dtype=dtype).unet.state_dict()
    assert all(torch.equal(pipe.unet.state_dict()[key], value) for key, value in before.items())
    deltas = added_up(guards)
    for key, value in before.items():
        delta = deltas.get(key.removesuffix(".weight"))
        wanted = value if delta is None else (value.double() + delta).to(dtype)
        assert torch.equal(baked[key], wanted), key


def test_convolutions_are_merged(tmp_path: Path) -> None:
    from saferedir.guards.esd import ESD, ESDConfig

    pipe, generator = SD.build(), torch.Generator().manual_seed(0)
    weight = pipe.unet.get_submodule("conv_in").weight
    down = 0.3 * torch.randn(2, *weight.shape[1:], generator=generator)
    up = 0.3 * torch.randn(weight.shape[0], 2, 1, 1, generator=generator)
    lora = {"conv_in.lora_A.weight": down, "conv_in.lora_B.weight": up}
    guard = ESD(ESDConfig(concept="star", rank=2, targets=("conv_in",)), lora)
    with sr.attach(pipe, guard):
        guarded = run(SD, pipe)
    baked = load(SD, sr.bake(pipe, guard, tmp_path / "baked"))
    torch.testing.assert_close(run(SD, baked), guarded, atol=1e-4, rtol=1e-4)
    assert not torch.equal(run(SD, pipe), guarded)


def test_the_record_says_what_was_done(tmp_path: Path) -> None:
    pipe, guard = SD.build(), make("uce", weight=0.5)
    before = backbone_fingerprint(pipe)
    folder = sr.bake(pipe, guard, tmp_path / "baked")
    record = json.loads((folder / RECORD).read_text())
    after = backbone_fingerprint(load(SD, folder))
    assert (record["backbone_before"], record["backbone_after"]) == (before, after)
    assert before["architecture"] == after["architecture"] and before["weights"]["unet"] != after["weights"]["unet"]
    assert record["guards"] == [
        {"method": "uce", "concept": "star", "name": "", "weight": 0.5, "sha256": weights_sha256(guard)}
    ]
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert sorted(record["files"]) == files
    card = (folder / "README.md").read_text()
    assert weights_sha256(guard)[:16] in card and after["weights"]["unet"] in card
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.rglob("*.json"))


def test_saferedir_on_a_baked_model_says_that_the_weights_are_others(tmp_path: Path) -> None:
    pipe, guard = SD.build(), GUARDS["saferedir"].make(SD.build(), SD)
    baked = load(SD, sr.bake(pipe, make("uce"), tmp_path / "baked"))
    plain = run(SD, baked)
    with pytest.warns(UserWarning, match="with other weights"), sr.attach(baked, guard) as attached:
        assert not torch.equal(run(SD, baked), plain) and attached.decisions[0].fired
    assert torch.equal(run(SD, baked), plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sr.attach(baked, make("esd")).detach()


def test_refusals(tmp_path: Path) -> None:
    pipe, out = SD.build(), tmp_path / "baked"
    with pytest.raises(sr.GuardError, match="'sld' edits no weights"):
        sr.bake(pipe, [make("uce"), GUARDS["sld"].make(pipe, SD)], out)
    with pytest.raises(sr.GuardError, match="at least one guard"):
        sr.bake(pipe, [], out)
    with pytest.raises(sr.GuardError, match="has a transformer"):
        sr.bake(PIPELINES["sd3"].build(), make("uce"), out)
    with pytest.raises(sr.GuardError, match="has no layer"):
        sr.bake(PIPELINES["flux"].build(), make("uce", "sd3"), out, force=True)
    wide = {name: torch.cat([value, value], -1) if "_A" in name else value for name, value in make("uce").lora.items()}
    with pytest.raises(sr.GuardError, match="use a guard that was trained for this backbone"):
        sr.bake(pipe, type(make("uce"))(make("uce").config, wide), out)
    with pytest.raises(sr.UnsupportedPipelineError, match="transformer_2"):
        sr.bake(PIPELINES["wan-2.2"].build(), make("uce", "wan"), out)
    with sr.attach(pipe, make("uce")), pytest.raises(sr.GuardError, match="guards are attached"):
        sr.bake(pipe, make("uce"), out)
    pipe.load_lora_weights(make("duo").tensors())
    with pytest.raises(sr.GuardError, match="LoRAs loaded"):
        sr.bake(pipe, make("uce"), out)
    assert not out.exists()


def test_nothing_is_replaced_unasked_and_nothing_is_left_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, out = SD.build(), tmp_path / "baked"
    sr.bake(pipe, make("uce"), out)
    (out / "notes.txt").write_text("mine")
    first = (out / RECORD).read_text()
    with pytest.raises(OutputError, match="pass overwrite=True"):
        sr.bake(pipe, make("esd"), out)
    state = {key: value.clone() for key, value in pipe.unet.state_dict().items()}

    def fail(*arguments: Any, **more: Any) -> None:
        raise OSError("disk")

    with monkeypatch.context() as patch:
        patch.setattr(type(pipe), "save_pretrained", fail)
        with pytest.raises(OSError, match="disk"):
            sr.bake(pipe, make("esd"), out, overwrite=True)
    assert (out / RECORD).read_text() == first and {path.name for path in tmp_path.iterdir()} == {"baked"}
    assert all(torch.equal(pipe.unet.state_dict()[key], value) for key, value in state.items())
    sr.bake(pipe, make("esd"), out, overwrite=True)
    assert (out / RECORD).read_text() != first and (out / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds no baked pipeline"):
        sr.bake(pipe, make("uce"), other, overwrite=True)


def test_the_command(tmp_path: Path) -> None:
    model, guards, out = tmp_path / "model", [tmp_path / "one", tmp_path / "two"], tmp_path / "baked"
    SD.build().save_pretrained(model)
    make("uce").save_pretrained(guards[0])
    make("esd").save_pretrained(guards[1])
    words = ["bake", "--model", model, "--guard", guards[0], "--guard", guards[1], "--out", out, "--device", "cpu"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0 and "Pipeline written to" in result.output, result.output
    assert [guard["name"] for guard in json.loads((out / RECORD).read_text())["guards"]] == ["one", "two"]
    run(SD, load(SD, out))
    again = CliRunner().invoke(app, list(map(str, words)))
    assert again.exit_code == 1 and "give --force" in again.output
    assert CliRunner().invoke(app, [*map(str, words), "--force"]).exit_code == 0
    GUARDS["sld"].make(None, SD).save_pretrained(tmp_path / "sld")
    words = ["bake", "--model", model, "--guard", tmp_path / "sld", "--out", tmp_path / "no"]
    refused = CliRunner().invoke(app, list(map(str, words)))
    assert refused.exit_code == 1 and "edits no weights" in refused.output and not (tmp_path / "no").exists()


def test_a_guard_that_changes_nothing_is_not_baked(tmp_path: Path) -> None:
    with pytest.raises(sr.GuardError, match="changes nothing"):
        sr.bake(SD.build(), make("uce", weight=0.0), tmp_path / "baked")
    assert not (tmp_path / "baked").exists()


def test_a_guard_of_other_weights_is_named(tmp_path: Path) -> None:
    guard = make("uce")
    pipe = SD.build()
    guard.config = replace(guard.config, backbone=backbone_fingerprint(pipe))
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            weight.mul_(1.5)
    with pytest.warns(UserWarning, match="trained on another unet"):
        sr.bake(pipe, guard, tmp_path / "baked")
