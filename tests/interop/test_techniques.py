"""Techniques by themselves: configs, seeds, batches, policies, and each method made on the spot. Needs no other package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import saferedir as sr
from saferedir.errors import GuardConfigError, GuardNotFoundError
from saferedir.guards.negation import NegationSet
from saferedir.interop.eval_unlearn import TECHNIQUES, GuardTechnique, TechniqueConfig
from saferedir.pictoworld.judge import to_tensor
from saferedir.pictoworld.methods import negation_set
from saferedir.pictoworld.tasks import TASKS

STAR, NO_STAR = "a red star over the sky", "a blue square on a green background"
QUICK = {"num_inference_steps": 2, "guidance_scale": 4.0, "device": "cpu"}
GUARDED = {"model_id": "pictoworld", "guard": "pictoworld/star"}


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.mode == second.mode and first.size == second.size and first.tobytes() == second.tobytes()


def test_seeds() -> None:
    technique = TECHNIQUES["saferedir"](**GUARDED, **QUICK, seed=5)
    two = technique.generate([NO_STAR, NO_STAR], seed=7)
    assert not same(*two)
    assert same(two[1], technique.generate([NO_STAR], seed=8)[0])
    assert same(technique.generate([NO_STAR])[0], technique.generate([NO_STAR], seed=5)[0])
    unseeded = TECHNIQUES["saferedir"](**GUARDED, **QUICK)
    assert not same(unseeded.generate([NO_STAR])[0], unseeded.generate([NO_STAR])[0])
    assert technique.generate([]) == []


def test_a_batch_is_the_same_images_in_the_same_order() -> None:
    texts = [STAR, NO_STAR, STAR]
    one = TECHNIQUES["saferedir"](**GUARDED, **QUICK).generate(texts, seed=0)
    many = TECHNIQUES["saferedir"](**GUARDED, **QUICK, batch_size=2).generate(texts, seed=0)
    assert torch.allclose(to_tensor(one), to_tensor(many), atol=2 / 255)


def test_a_blocked_image_is_black_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    technique = TECHNIQUES["saferedir"](**GUARDED, **QUICK, policy="block", batch_size=2)
    star, square = technique.generate([STAR, NO_STAR], seed=0)
    assert star.getextrema() == ((0, 0),) * 3
    assert square.getextrema() != ((0, 0),) * 3
    assert technique.blocked == 1 and "1 of 2" in caplog.text
    assert STAR not in caplog.text


def test_arguments_of_the_call_win_over_those_of_the_config() -> None:
    technique = TECHNIQUES["saferedir"](**GUARDED, **QUICK, call={"height": 72, "width": 56})
    assert technique.generate([NO_STAR])[0].size == (56, 72)
    assert technique.generate([NO_STAR], height=80, num_inference_steps=1)[0].size == (56, 80)
    with pytest.raises(GuardConfigError, match="output_type"):
        technique.generate([NO_STAR], output_type="latent")


def test_several_guards_stand_in_a_row() -> None:
    technique = TECHNIQUES["saferedir"](**{**GUARDED, "guard": ["pictoworld/star-duo", "pictoworld/star"]}, **QUICK)
    assert [guard.method for guard in technique.pipe.guards] == ["duo", "saferedir"]
    assert len(technique.generate([STAR])) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_pipeline_in_half_precision(dtype: str) -> None:
    technique = TECHNIQUES["saferedir"](**GUARDED, **QUICK, dtype=dtype)
    assert technique.pipe.unet.dtype is getattr(torch, dtype)
    assert len(technique.generate([STAR], seed=0)) == 1


@pytest.fixture(scope="module")
def stars(tmp_path_factory: pytest.TempPathFactory) -> str:
    found: NegationSet = negation_set(TASKS["star"], sr.load_pipeline("pictoworld"), count=12)
    return str(found.save(tmp_path_factory.mktemp("sets") / "stars.safetensors"))


@pytest.fixture(scope="module")
def unguarded() -> Image.Image:
    pipe = sr.load_pipeline("pictoworld")
    generator = torch.Generator().manual_seed(0)
    image: Image.Image = pipe(STAR, num_inference_steps=2, guidance_scale=4.0, generator=generator).images[0]
    return image


MADE: dict[str, dict[str, Any]] = {
    "saferedir_negative_prompt": {"phrases": ["star", "pentagram"]},
    "saferedir_sld": {"preset": "max", "warmup": 0.5},
    "saferedir_safree": {"svf": "off"},
    "saferedir_dual_latent": {"preset": "high", "provider": "anchor", "anchor": "a circle"},
    "saferedir_safe_denoiser": {"negation_set": ..., "eta": 0.5},
    "saferedir_spell": {"negation_set": ..., "radius": 1000.0},
}


def test_the_table_above_has_every_method_that_needs_no_training() -> None:
    assert set(MADE) == {name for name, row in TECHNIQUES.items() if row.make is not None}


@pytest.mark.parametrize("name", MADE)
def test_a_method_without_training_is_made_on_the_spot(
    name: str, stars: str, unguarded: Image.Image, tmp_path: Path
) -> None:
    settings = {key: stars if value is ... else value for key, value in MADE[name].items()}
    technique = TECHNIQUES[name](model_id="pictoworld", erase_concept="star", guard_config=settings, **QUICK)
    (guard,) = technique.pipe.guards
    assert (guard.method, guard.config.concept) == (TECHNIQUES[name].method, "star")
    rest = {key: value for key, value in settings.items() if key not in ("preset", "negation_set")}
    found = guard.config.to_dict()
    assert {key: list(found[key]) if isinstance(found[key], tuple) else found[key] for key in rest} == rest
    image = technique.generate([STAR], seed=0)[0]
    assert not same(image, unguarded)
    saved = TECHNIQUES[name](model_id="pictoworld", guard=str(guard.save_pretrained(tmp_path / "guard")), **QUICK)
    assert same(image, saved.generate([STAR], seed=0)[0])


def test_presets_are_the_methods_own() -> None:
    technique = TECHNIQUES["saferedir_sld"](
        model_id="pictoworld", erase_concept="star", guard_config={"preset": "max"}, **QUICK
    )
    (guard,) = technique.pipe.guards
    assert guard.config == type(guard.config).preset("max", concept="star")


def test_the_pipelines_own_checker_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Checker(torch.nn.Module):
        def forward(self, clip_input: Any, images: Any) -> Any:
            raise AssertionError

    def load(*args: Any, **kwargs: Any) -> Any:
        pipe = sr.load_pipeline(*args, **kwargs)
        pipe.safety_checker = Checker()
        return pipe

    monkeypatch.setattr("saferedir.interop.eval_unlearn.load_pipeline", load)
    technique: GuardTechnique = TECHNIQUES["saferedir"](**GUARDED, **QUICK)
    assert technique.pipe.safety_checker is None and len(technique.generate([NO_STAR])) == 1
    assert TECHNIQUES["saferedir"](**GUARDED, **QUICK, safety_checker=True).pipe.safety_checker is not None


def test_another_name_for_the_concept_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    for name, is_pointed_out in (("Star", False), ("circle", True)):
        TECHNIQUES["saferedir"].guards(TechniqueConfig(**GUARDED, erase_concept=name))
        assert bool(caplog.text) is is_pointed_out
    assert "'circle'" in caplog.text and "'star'" in caplog.text


@pytest.mark.parametrize(
    ("name", "config", "error", "sentence"),
    [
        ("saferedir", {"guard": "pictoworld/star"}, GuardConfigError, "model_id"),
        ("saferedir", {"model_id": "pictoworld"}, GuardConfigError, 'needs "guard"'),
        ("saferedir", {"model_id": "pictoworld", "guard": []}, GuardConfigError, 'needs "guard"'),
        ("saferedir", {**GUARDED, "gaurd": "x"}, GuardConfigError, "did you mean 'guard'"),
        ("saferedir", {**GUARDED, "guard": "pictoworld/none"}, GuardNotFoundError, "pictoworld/none"),
        ("saferedir", {**GUARDED, "policy": "hope"}, GuardConfigError, "hope"),
        ("saferedir", {**GUARDED, "dtype": "int8"}, GuardConfigError, "int8"),
        ("saferedir", {**GUARDED, "batch_size": 0}, GuardConfigError, "batch_size is 0"),
        ("saferedir", {**GUARDED, "call": {"generator": 1}}, GuardConfigError, "generator"),
        ("saferedir_duo", GUARDED, GuardConfigError, "takes duo"),
        ("saferedir_duo", {"model_id": "pictoworld", "erase_concept": "star"}, GuardConfigError, 'needs "guard"'),
        ("saferedir_sld", {"model_id": "pictoworld"}, GuardConfigError, "erase_concept"),
        ("saferedir_sld", {**GUARDED, "guard_config": {"strength": 1}}, GuardConfigError, "both"),
        (
            "saferedir_sld",
            {"model_id": "pictoworld", "erase_concept": "star", "guard_config": {"strenght": 1}},
            GuardConfigError,
            "strenght",
        ),
        ("saferedir_spell", {"model_id": "pictoworld", "erase_concept": "star"}, GuardConfigError, "negation_set"),
    ],
)
def test_a_config_that_cannot_be_meant_is_one_sentence(
    name: str, config: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence) as caught:
        TECHNIQUES[name](**config)
    assert "\n" not in str(caught.value)
