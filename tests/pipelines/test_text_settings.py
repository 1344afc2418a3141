"""Settings of the text encoders: which there are, and what a guard that judges embeddings does under others than its own."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import PixArtSigmaPipeline
from peft import LoraConfig
from tests.contract.guards import Watcher, make_saferedir
from tests.newer_pipelines import EVERY
from tests.security.text_settings_probes import case_of, rates, with_text_model
from tests.tiny_pipelines import run
from torch import Tensor

import saferedir as sr
from saferedir.bench.planning.plan_checks import check_text
from saferedir.errors import BenchError
from saferedir.guards.saferedir import SafeRedir
from saferedir.guards.saferedir.layers import real_tokens
from saferedir.guards.saferedir.trained_text import LENGTHS, text_lengths, text_record
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.encoding import encode_prompts
from saferedir.pipelines.families import FAMILIES, family_of
from saferedir.pipelines.text_settings import default_settings, named_arguments, text_settings

NAMES = {
    "sd": {"clip_skip"},
    "sdxl": {"clip_skip"},
    "sd3": {"clip_skip", "max_sequence_length"},
    "flux": {"max_sequence_length"},
    "pixart-sigma": {"clean_caption"},
    "sana": {"clean_caption", "complex_human_instruction"},
    "lumina2": {"system_prompt"},
    "lumina": {"clean_caption"},
    "aura-flow": set(),
    "wan": set(),
    "qwen-image": set(),
    "cogview-3-plus": {"max_sequence_length"},
    "kandinsky-3": set(),
    "kolors": set(),
    "kandinsky-5": set(),
    "kandinsky-5-video": set(),
    "ltx-video": {"max_sequence_length"},
    "krea-2": set(),
    "prx": {"tokenizer_max_length", "skip_text_cleaning"},
    "hunyuan-dit": set(),
    "hunyuan-image": set(),
    "hidream": {"max_sequence_length"},
    "flux-2": {"max_sequence_length", "text_encoder_out_layers"},
}
_PIPES: dict[str, Any] = {}


def pipeline(name: str) -> Any:
    """One pipeline a case; tests leave it as they found it."""
    return _PIPES.setdefault(name, EVERY[name].build())


def made(name: str, **training: Any) -> SafeRedir:
    """A random guard that acts on everything, with this record of a training."""
    guard = make_saferedir(pipeline(name), EVERY[name])
    guard.config = replace(guard.config, training=training)
    return guard


def draw(name: str, pipe: Any, prompt: Any = "a", **settings: Any) -> Tensor:
    """One step under the call's defaults and `settings`."""
    case = case_of(name, max_sequence_length=None, system_prompt=None)
    return run(case, pipe, prompt, steps=1, **settings)


# ---------------------------------------------------------------------- which there are


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_what_call_and_encoder_share(name: str) -> None:
    pipe = pipeline(name)
    assert set(default_settings(pipe, family_of(pipe))) == NAMES[name]


def test_a_length_that_the_call_hands_to_nobody_is_no_setting() -> None:
    """Kolors encodes 256 tokens, whatever its call says; the day that it does not, this fails, and the row must change."""
    pipe = pipeline("kolors")
    assert torch.equal(run(EVERY["kolors"], pipe, steps=1, max_sequence_length=16), run(EVERY["kolors"], pipe, steps=1))
    assert encode_prompts(pipe, ["a"], {"max_sequence_length": 16}).prompt.shape[1] == 256
    with sr.attach(pipe, made("kolors")):
        run(EVERY["kolors"], pipe, steps=1, max_sequence_length=16)
    assert text_lengths(pipe, {}, None) == ()


def test_a_setting_that_nobody_knows_yet_is_one() -> None:
    class Newer(type(pipeline("sd"))):  # type: ignore[misc]
        def __call__(
            self, prompt: Any = None, text_encoder_out_layers: tuple[int, ...] = (10, 20), **more: Any
        ) -> None:
            """As FLUX.2 has it."""

        def encode_prompt(self, prompt: Any, device: Any, text_encoder_out_layers: tuple[int, ...] = (10, 20)) -> None:
            """As FLUX.2 has it."""

    pipe = object.__new__(Newer)
    pipe.__dict__.update(vars(pipeline("sd")))
    found = text_settings(pipe, {"prompt": "a", "text_encoder_out_layers": [9, 18]})
    assert found.values == {"text_encoder_out_layers": [9, 18]}
    assert found.defaults == {"text_encoder_out_layers": [10, 20]}
    with pytest.raises(sr.GuardError, match=r"text_encoder_out_layers=\[9, 18\]"):
        found.require({}, (), "this guard")


def test_a_subclass_that_hands_arguments_on_hides_no_setting() -> None:
    pipe = pipeline("sdxl")

    class Open(type(pipe)):  # type: ignore[misc]
        def __call__(self, *args: Any, **more: Any) -> Any:
            return super().__call__(*args, **more)

        def encode_prompt(self, *args: Any, **more: Any) -> Any:
            return super().encode_prompt(*args, **more)

    class Skipping(type(pipe)):  # type: ignore[misc]
        def __call__(self, prompt: Any = None, clip_skip: int | None = 1, **more: Any) -> Any:
            return super().__call__(prompt, clip_skip=clip_skip, **more)

    for kind, refused, allowed in ((Open, {"clip_skip": 1}, {}), (Skipping, {}, {"clip_skip": None})):
        own = kind(**pipe.components)
        own.set_progress_bar_config(disable=True)
        assert set(default_settings(own, family_of(own))) == {"clip_skip"}
        with sr.attach(own, made("sdxl")):
            with pytest.raises(sr.GuardError, match=r"clip_skip=1.*trained with clip_skip=None"):
                draw("sdxl", own, **refused)
            draw("sdxl", own, **allowed)
    assert text_record(own, {}, ())["text_settings"] == {"clip_skip": 1}  # a guard trained on it knows its default


@pytest.mark.parametrize(
    "name",
    ["sd3", "flux", "pixart-sigma", "sana", "lumina2", "aura-flow", "wan", "qwen-image", "krea-2", "kandinsky-5"],
)
@torch.no_grad()
def test_a_familys_fact_on_lengths_is_what_its_embeddings_show(name: str) -> None:
    """A prompt's own tokens are the same at any length, up to rounding, exactly where the family says so."""
    case, pipe = EVERY[name], pipeline(name)
    more: dict[str, Any] = {"sana": {"complex_human_instruction": None}, "lumina2": {"system_prompt": "draw"}}.get(  # type: ignore[assignment]
        name, {}
    )
    short, long = (encode_prompts(pipe, ["a b"], {"max_sequence_length": length, **more}) for length in (40, 72))
    count = int(real_tokens(short.prompt, short.mask).sum())
    if FAMILIES[case.family].length_matters:
        count = short.prompt.shape[1]
    whole = FAMILIES[case.family].length_matters
    near = [
        found.prompt[:, :count] if whole else found.prompt[real_tokens(found.prompt, found.mask)]
        for found in (short, long)
    ]
    apart = float((near[0] - near[1]).norm() / near[1].norm())
    assert (apart > 1e-3) == FAMILIES[case.family].length_matters, apart
    if not FAMILIES[case.family].length_matters:
        assert apart < 1e-4 and int(real_tokens(long.prompt, long.mask).sum()) == count


def test_a_loop_in_a_method_of_its_own_hides_no_setting() -> None:
    class Split(type(pipeline("sdxl"))):  # type: ignore[misc]
        def __call__(self, prompt: Any = None, clip_skip: int | None = None, **more: Any) -> Any:
            self._guidance_scale, self._interrupt = 1.0, False
            return self.loop(*self.encode_prompt(prompt, clip_skip=clip_skip, do_classifier_free_guidance=False)[::2])

        def loop(self, embeds: Tensor, pooled: Tensor) -> Tensor:
            self.scheduler.set_timesteps(1)
            given = {"text_embeds": pooled, "time_ids": torch.zeros(1, 6)}
            time, noise = self.scheduler.timesteps[0], torch.zeros(1, 4, 4, 6)
            pred = self.unet(noise, time, encoder_hidden_states=embeds, added_cond_kwargs=given).sample
            return self.scheduler.step(pred, time, noise).prev_sample

    pipe = Split(**pipeline("sdxl").components)
    pipe._num_timesteps = 1
    with sr.attach(pipe, made("sdxl")):
        with pytest.raises(sr.GuardError, match="clip_skip=1"):
            pipe("a", clip_skip=1)
        pipe("a")


# ---------------------------------------------------------------------- refused, or the same

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("sdxl", {"clip_skip": 1}),
    ("sdxl", {"prompt_2": "x"}),
    ("sd3", {"clip_skip": 1}),
    ("sd3", {"max_sequence_length": 64}),
    ("sd3", {"prompt_2": "x"}),
    ("sd3", {"prompt_3": "x"}),
    ("flux", {"max_sequence_length": 128}),
    ("flux", {"prompt_2": "x"}),
    ("pixart-sigma", {"clean_caption": False}),
    ("sana", {"complex_human_instruction": ["Write in verse."]}),
    ("sana", {"complex_human_instruction": None}),
    ("lumina2", {"system_prompt": "You are a poet."}),
]


@pytest.mark.parametrize(("name", "setting"), REFUSED)
def test_a_trained_guard_refuses_prompts_encoded_in_another_way(name: str, setting: dict[str, Any]) -> None:
    pipe, guard = pipeline(name), made(name, steps=1)
    with sr.attach(pipe, guard) as attached, pytest.raises(sr.GuardError) as caught:
        draw(name, pipe, **setting)
    assert next(iter(setting)) in str(caught.value) and "\n" not in str(caught.value)
    assert attached.decisions == [] and attached.runs == 0


ALLOWED: list[tuple[str, dict[str, Any]]] = [
    ("sdxl", {"clip_skip": 0}),
    ("sdxl", {"prompt_2": "a"}),
    ("sdxl", {"prompt_2": ""}),
    ("pixart-sigma", {"max_sequence_length": 24}),
    ("wan", {"max_sequence_length": 64}),
    ("lumina2", {"max_sequence_length": 64}),
    ("aura-flow", {"max_sequence_length": 24}),
]


@pytest.mark.parametrize(("name", "setting"), ALLOWED)
def test_what_changes_nothing_for_the_guard_is_let_be(name: str, setting: dict[str, Any]) -> None:
    with sr.attach(pipeline(name), made(name, steps=1)) as attached:
        draw(name, pipeline(name), **setting)
    assert attached.runs == 1


def test_embeddings_that_are_given_carry_no_settings() -> None:
    pipe, guard = pipeline("sdxl"), made("sdxl", steps=1)
    given = encode_prompts(pipe, ["a"])
    arguments = {"prompt_embeds": given.prompt, "pooled_prompt_embeds": given.pooled, **EVERY["sdxl"].unguided}
    with sr.attach(pipe, guard) as attached:
        draw("sdxl", pipe, None, clip_skip=1, **arguments)
    assert attached.runs == 1


def test_a_guard_knows_what_it_was_trained_with() -> None:
    """By the settings' record, or, in guards older than that, by the arguments of its roll-outs."""
    pipe = pipeline("flux")
    records: tuple[dict[str, Any], ...] = (
        {"call": {"max_sequence_length": 24}},
        {"text_settings": {"max_sequence_length": 24}},
        {"text_lengths": [20, 60]},
    )
    for training in records:
        guard = made("flux", steps=1, **training)
        with sr.attach(pipe, guard) as attached:
            draw("flux", pipe, max_sequence_length=24)
            with pytest.raises(sr.GuardError, match=r"max_sequence_length=512"):
                draw("flux", pipe)
        assert attached.runs == 1
    guard = made("sdxl", steps=1, call={"clip_skip": 1})
    with sr.attach(pipeline("sdxl"), guard), pytest.raises(sr.GuardError, match=r"call with clip_skip=1"):
        draw("sdxl", pipeline("sdxl"))


def test_the_record_of_a_training() -> None:
    pipe = pipeline("flux")
    assert text_lengths(pipe, {}, None) == (64, 128, 256, 512)
    assert text_lengths(pipe, {}, (16,)) == (16, 512)
    assert text_lengths(pipe, {"max_sequence_length": 24}, None) == (24,)
    assert text_lengths(pipeline("wan"), {}, None) == ()
    record = text_record(pipe, {"height": 32}, (64, 512))
    assert record == {"text_settings": {"max_sequence_length": 512}, "text_lengths": [64, 512]}
    for words in (["draw"], ["Given a user prompt, describe it at length."] * 20):
        call = {"complex_human_instruction": words}
        instruction = text_record(pipeline("sana"), call, ())["text_settings"]["complex_human_instruction"]
        assert len(words) == 1 or ("sha256" in instruction and len(instruction) < 80)


@pytest.mark.slow
def test_a_verdict_trained_at_several_lengths_serves_those_between() -> None:
    """Trained at one it misses at others: at 24 tokens, all at 128 and more."""
    asked = (64, 100, 200, 384, 512)
    calls = [{"max_sequence_length": length} for length in asked]
    assert rates(pipeline("flux"), LENGTHS, calls) == [(1.0, 0.0)] * len(asked)
    assert rates(pipeline("flux"), (24,), calls[-1:])[0][0] < 0.5


def test_a_guard_without_any_record_still_knows_its_layer() -> None:
    with sr.attach(pipeline("sdxl"), made("sdxl")), pytest.raises(sr.GuardError, match="clip_skip=1"):
        draw("sdxl", pipeline("sdxl"), clip_skip=1)


@pytest.mark.parametrize("policy", ["attach", "protect"])
@pytest.mark.parametrize("name", ["emblem", "star"])
def test_no_packaged_guard_is_walked_past_with_clip_skip(name: str, policy: str) -> None:
    """It was, in 57 of 60 calls for the emblem and in 4 of 60 for a star."""
    pipe = with_text_model(sr.load_pipeline("pictoworld"))
    pipe.set_progress_bar_config(disable=True)
    guard = sr.Guard.from_pretrained(f"pictoworld/{name}")
    prompts = [
        f"a {colour} {name} on {place}"
        for colour in "red blue green pink".split()
        for place in "abcdefghijklmnopqrstuvwxy"
    ]
    call = {"num_inference_steps": 4, "guidance_scale": 4.0, "output_type": "latent"}
    guarded = (
        sr.attach(pipe, guard)
        if policy == "attach"
        else sr.protect(pipe, guard, on_unsafe="verify", image_verifiers=False)
    )
    with guarded:
        for skipped in (1, 2):
            with pytest.raises(sr.GuardError, match=rf"clip_skip={skipped}.*trained with clip_skip=None"):
                (pipe if policy == "attach" else guarded)(prompts, clip_skip=skipped, **call)
        (pipe if policy == "attach" else guarded)(prompts[:1], clip_skip=None, **call)
        assert len(guarded.decisions) == 1


def test_a_bench_says_so_before_it_begins() -> None:
    pipe = pipeline("sdxl")
    check_text([made("sdxl", steps=1)], {"clip_skip": 0, "height": 32}, pipe)
    for call in ({"clip_skip": 1}, {"prompt_2": "x"}):
        with pytest.raises(BenchError, match=rf"no cell of guard 'saferedir' can be filled: .*{next(iter(call))}"):
            check_text([made("sdxl", steps=1)], call, pipe)


# ---------------------------------------------------------------------- guards' own words


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("sdxl", {"clip_skip": 1}),
        ("lumina2", {"system_prompt": "draw", "max_sequence_length": 48}),
        ("sana", {"complex_human_instruction": None, "max_sequence_length": 24}),
        ("flux", {"max_sequence_length": 24}),
    ],
)
def test_guards_words_are_encoded_as_the_runs_prompts_are(name: str, setting: dict[str, Any]) -> None:
    watcher = Watcher()
    with sr.attach(pipeline(name), watcher):
        draw(name, pipeline(name), "a b", **setting)
    found: PromptEmbeds = watcher.runs[0].encode(["a b"])
    torch.testing.assert_close(found.prompt, watcher.steps[0].prompt_embeds, rtol=1e-4, atol=1e-5)


def test_guards_words_are_as_long_as_embeddings_that_were_given() -> None:
    watcher, pipe = Watcher(), pipeline("flux")
    given = encode_prompts(pipe, ["a"], {"max_sequence_length": 40})
    with sr.attach(pipe, watcher):
        draw("flux", pipe, None, prompt_embeds=given.prompt, pooled_prompt_embeds=given.pooled, max_sequence_length=24)
    torch.testing.assert_close(watcher.runs[0].encode(["a"]).prompt, given.prompt)


# ---------------------------------------------------------------------- adapters and new words


def test_a_lora_on_the_text_encoder_is_warned_of_once() -> None:
    pipe, guard = EVERY["sd"].build(), made("sd", steps=1)
    with sr.attach(pipe, guard):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw("sd", pipe)
        lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        pipe.text_encoder.add_adapter(lora, adapter_name="style")
        with pytest.warns(UserWarning, match=r"LoRA 'style' .*text_encoder"):
            draw("sd", pipe)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw("sd", pipe)


def test_the_verdict_sees_a_word_of_textual_inversion_as_the_denoiser_does() -> None:
    pipe, watcher = EVERY["sd"].build(), Watcher()
    width = pipe.text_encoder.get_input_embeddings().weight.shape[1]
    before = encode_prompts(pipe, ["a <new>"]).prompt
    pipe.load_textual_inversion({"<new>": 3.0 * torch.ones(width)}, token="<new>")
    pipe.text_encoder.eval()
    with sr.attach(pipe, watcher):
        draw("sd", pipe, "a <new>")
    seen = watcher.steps[0].prompt_embeds
    torch.testing.assert_close(seen, encode_prompts(pipe, ["a <new>"]).prompt)
    assert not torch.allclose(seen, before)


def test_defaults_are_those_of_the_base_class_where_a_subclass_hides_them() -> None:
    class Hiding(PixArtSigmaPipeline):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    pipe = object.__new__(Hiding)
    own = named_arguments(object.__new__(PixArtSigmaPipeline))
    assert named_arguments(pipe)["clean_caption"].default is own["clean_caption"].default is True
    assert named_arguments(pipe).keys() == own.keys()


def test_an_encode_prompt_put_on_the_pipeline_counts() -> None:
    pipe = pipeline("sd")
    original = pipe.encode_prompt

    def wrapped(prompt: Any, *args: Any, strength_of_words: float = 1.0, **kwargs: Any) -> Any:
        return original(prompt, *args, **kwargs)

    pipe.encode_prompt = wrapped
    found = named_arguments(pipe, "encode_prompt")
    assert {"strength_of_words", "clip_skip", "device"} <= found.keys()
    pipe.encode_prompt = lambda prompt, device: original(prompt, device, 1, False)
    assert list(named_arguments(pipe, "encode_prompt")) == ["prompt", "device"]


def test_a_template_around_the_prompt_is_a_setting() -> None:
    case, pipe = EVERY["qwen-image"], EVERY["qwen-image"].build()
    record = text_record(pipe, {}, ())
    name = "prompt_template_encode"
    assert f"pipe.{name}" not in record["text_settings"]  # the tiny pipeline's class has it fixed
    vars(pipe)[name] = "{}"
    assert text_record(pipe, {}, ())["text_settings"][f"pipe.{name}"] == "{}"
    vars(pipe)[name] = "words {}"
    found = text_settings(pipe, {"prompt": "a"})
    found.require({}, (), "a guard without a record")
    with pytest.raises(
        sr.GuardError, match=r"pipe.prompt_template_encode='words \{\}'.*give pipe.prompt_template_encode its"
    ):
        found.require({f"pipe.{name}": "{}"}, (), "this guard")
    assert case.family == "qwen-image"
