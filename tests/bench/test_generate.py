"""What counts as a blocked image and what as a failure; where a set of images may be generated; what a loaded model is
stripped of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch import nn

from saferedir.bench.executors import Job, Outcome, attempt
from saferedir.bench.generation import generate as drawing_module
from saferedir.bench.generation import resources as resources_module
from saferedir.bench.generation.generate import GUARD_SETUP_ERRORS, GenerationSpec, generate_shard
from saferedir.bench.generation.resources import GuardPart, ModelSpec, Resources
from saferedir.errors import BenchError, GuardError

MODEL = ModelSpec("pictoworld", 2, "float32", "cpu", True, {"num_inference_steps": 2, "guidance_scale": 4.0})
SLD = (GuardPart({"method": "sld", "config": {"concept": "star"}}),)


@pytest.fixture(scope="module")
def resources() -> Resources:
    return Resources()


def spec(n: int = 4, shard_size: int = 4, guards: tuple[GuardPart, ...] = SLD, **changes: Any) -> GenerationSpec:
    settings: dict[str, Any] = {"model": MODEL, "precision": "", **changes}
    return GenerationSpec(
        guards=guards,
        guards_digest="",
        texts=("a star",) * n,
        seeds=tuple(range(n)),
        prompt_of=tuple(range(n)),
        judges=(),
        shard_size=shard_size,
        keep_images=False,
        versions={},
        **settings,
    )


def tried(one: GenerationSpec, resources: Resources, shard: int = 0) -> Outcome:
    return attempt(Job(one, one.shards[shard]), resources)


@pytest.fixture
def break_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], Exception | None]], None]:
    """Let generation a row raise what `error(row)` says; a batch raises what its first bad row does."""

    def install(error: Callable[[int], Exception | None]) -> None:
        def generate(pipe: Any, guards: Any, spec: GenerationSpec, rows: range) -> tuple[list[Any], list[bool]]:
            for row in rows:
                if (found := error(row)) is not None:
                    raise found
            return [torch.zeros(3, 2, 2, dtype=torch.uint8) for _ in rows], [False] * len(rows)

        monkeypatch.setattr(drawing_module, "_generate", generate)

    return install


def test_a_negative_prompt_of_the_model_serves_every_image(resources: Resources) -> None:
    """One text in the matrix, several prompts in a batch: the images of single calls."""
    model = dataclasses.replace(MODEL, call={**MODEL.call, "negative_prompt": "a blue heart"})
    together = tried(spec(2, 2, guards=(), model=model), resources).generated
    assert together is not None
    bare = tried(spec(2, 2, guards=()), resources).generated
    assert bare is not None and set(bare.checksums).isdisjoint(together.checksums)
    as_list = dataclasses.replace(model, call={**MODEL.call, "negative_prompt": ["a blue heart"] * 2})
    listed = tried(spec(2, 2, guards=(), model=as_list), resources).generated
    assert listed is not None and listed.checksums == together.checksums


def test_a_guard_that_refuses_every_image_is_no_perfect_guard(resources: Resources) -> None:
    unguided = dataclasses.replace(MODEL, call={"num_inference_steps": 2, "guidance_scale": 1.0})
    outcome = tried(spec(model=unguided), resources)
    assert outcome.generated is None
    assert "cannot run here" in outcome.error and "classifier-free guidance" in outcome.error
    guided = tried(spec(), resources)
    assert guided.generated is not None and not guided.generated.blocked.any() and not guided.error


@pytest.mark.parametrize("kind", GUARD_SETUP_ERRORS)
@pytest.mark.parametrize("bad", [0, 3])
def test_a_guard_set_up_wrongly_fails_its_shard(
    kind: type[Exception], bad: int, resources: Resources, break_rows: Any
) -> None:
    break_rows(lambda row: kind("no such thing.") if row == bad else None)
    outcome = tried(spec(), resources)
    assert outcome.generated is None and outcome.error == f"{kind.__name__}: no such thing."


def test_set_up_errors_that_show_in_the_second_try_fail_too(resources: Resources, break_rows: Any) -> None:
    calls: list[int] = []

    def error(row: int) -> Exception:
        calls.append(row)
        return GuardError("first.") if len(calls) == 1 else GUARD_SETUP_ERRORS[0]("then this.")

    break_rows(error)
    assert tried(spec(), resources).error.endswith("then this.")


@pytest.mark.parametrize("blocked", [{0}, {1, 2}, {0, 1, 2}, {3}])
def test_some_refusals_block_only_their_images(blocked: set[int], resources: Resources, break_rows: Any) -> None:
    break_rows(lambda row: GuardError("an image holds NaN or infinity.") if row in blocked else None)
    images = generate_shard(spec(), spec().shards[0], resources)
    assert set(images.blocked.nonzero().flatten().tolist()) == blocked == set(images.reasons)
    assert [not checksum for checksum in images.checksums] == images.blocked.tolist() == images.intervened.tolist()


def test_all_refused_for_one_reason_or_for_several(resources: Resources, break_rows: Any) -> None:
    break_rows(lambda row: GuardError("an image holds NaN or infinity."))
    assert "NaN" in tried(spec(), resources).error
    break_rows(lambda row: GuardError(f"row {row} of {4} does not fit."))  # numbers do not make another reason
    assert "does not fit" in tried(spec(), resources).error
    break_rows(lambda row: GuardError("one reason." if row else "another."))
    several = tried(spec(), resources)
    assert several.generated is not None and several.generated.blocked.all() and not several.error


def test_the_one_image_left_over_is_not_judged_by_itself(resources: Resources, break_rows: Any) -> None:
    break_rows(lambda row: GuardError("no.") if row == 4 else None)
    tail = tried(spec(5), resources, shard=1)
    assert tail.generated is not None and tail.generated.blocked.tolist() == [True]
    break_rows(lambda row: GuardError("no."))
    assert "cannot run" in tried(spec(1), resources).error  # but the only one is
    assert "cannot run" in tried(spec(2, shard_size=1), resources).error  # and shards of one are


def test_nan_images_of_every_run(resources: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = resources.pipeline(MODEL)
    monkeypatch.setattr(pipe, "decode_latents", None, raising=False)
    real = type(pipe.vae).decode

    def decode(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (real(self, *args, **{**kwargs, "return_dict": False})[0] * torch.nan,)

    monkeypatch.setattr(type(pipe.vae), "decode", decode)
    assert "cannot run here" in tried(spec(), resources).error
    assert "bare model generated NaN" in tried(spec(guards=()), resources).error


def test_the_key_has_kind_of_device_and_precision(resources: Resources) -> None:
    here = resources.arithmetic(MODEL, resources.pipeline(MODEL))
    assert here.startswith("cpu, ")
    keys = {spec(precision=name).key for name in ("", here, "cpu, other", "cuda, float32")}
    assert len(keys) == 4
    assert tried(spec(n=1, shard_size=1, precision=here, guards=()), resources).generated is not None
    other = spec(precision="cuda, float16")
    with pytest.raises(BenchError, match=rf"generates on {here}, .* planned for cuda, float16"):
        generate_shard(other, other.shards[0], resources)


def test_the_models_own_safety_checker_is_off(
    monkeypatch: pytest.MonkeyPatch, pipeline_with: Callable[..., Any]
) -> None:
    def load(name: str, **settings: Any) -> Any:
        pipe = pipeline_with()
        pipe.safety_checker = nn.Linear(1, 1)
        pipe.register_to_config(requires_safety_checker=True)
        return pipe

    monkeypatch.setattr(resources_module, "load_pipeline", load)
    pipe = Resources().pipeline(MODEL)
    assert pipe.safety_checker is None and not pipe.config.requires_safety_checker


@pytest.fixture
def talkative() -> Iterator[None]:
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_warning()
    yield
    for library, level in zip(libraries, before, strict=True):
        library.set_verbosity(level)


@pytest.mark.usefixtures("talkative")
def test_no_warning_quotes_a_prompt(
    monkeypatch: pytest.MonkeyPatch, pipeline_with: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resources_module, "load_pipeline", lambda *args, **settings: pipeline_with())
    long = dataclasses.replace(spec(1, 1, ()), texts=("star " * 90 + "quoted",))
    assert tried(long, Resources()).generated is not None
    assert (
        "q u o t e d" not in (said := "".join(capfd.readouterr())) and "quoted" not in said and "truncated" not in said
    )


def test_the_size_of_images_is_the_calls_or_the_models(
    monkeypatch: pytest.MonkeyPatch, pipeline_with: Callable[..., Any]
) -> None:
    loaded: list[str] = []

    def load(name: str, **settings: Any) -> Any:
        loaded.append(name)
        return pipeline_with()

    monkeypatch.setattr(resources_module, "load_pipeline", load)
    own = Resources()
    told = dataclasses.replace(MODEL, call={"height": 48, "width": 40})
    assert own.image_size(told) == (48, 40) and not loaded
    half = dataclasses.replace(MODEL, call={"height": 48})
    assert own.image_size(MODEL) == (32, 32) and own.image_size(half) == (48, 32)
    own.pipeline(dataclasses.replace(MODEL, load="other"))
    assert own.image_size(MODEL) == (32, 32) and loaded == ["pictoworld", "other"]  # remembered


def test_how_a_model_is_loaded_is_in_its_digest_and_not_in_the_key_by_itself() -> None:
    plain = spec(guards=())
    fp16 = dataclasses.replace(plain, model=dataclasses.replace(plain.model, variant="fp16", loras=(("a", 0.5),)))
    assert fp16.key == plain.key


def test_a_lora_s_scale_is_part_of_the_model_s_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources_module, "model_digest", lambda pipe: "0" * 16)
    model = spec(guards=()).model
    found = {
        resources_module._digest_of(None, dataclasses.replace(model, loras=loras))
        for loras in ((), (("a", 0.5),), (("a", 1.0),))
    }
    assert len(found) == 3 and "0" * 16 in found
