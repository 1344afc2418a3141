"""Contract checks of what a user may do to a pipeline, before or after attaching: offload, compile, adapt, copy, swap.

Wherever the order matters both orders are run, and the images must be those of the other order, bit for bit. Imports
tests.contract.feature; listed in tests/contract/features.py.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_align_device_hook
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from tests.contract.feature import (
    NotApplicable,
    Refused,
    acts,
    bare,
    clean,
    close,
    denoiser_of,
    family_row,
    guarded,
    is_apart,
    must_refuse,
    on_shared,
    refuses,
    same,
)
from tests.contract.guard_features import same_decisions, skip_if_lacking
from tests.contract.guards import PROMPT, GuardCase, Redirect, Watcher, X0Editor, shared_pipeline
from tests.tiny_pipelines import PipelineCase, run
from torch import Tensor
from torch._dynamo.utils import counters

import saferedir as sr
from saferedir.attach import detach
from saferedir.guard import Conditioning, Guard, GuardConfig, Step


def both_orders(
    case: PipelineCase, guard: GuardCase, change: Callable[[Any], object], is_same_image: bool = True
) -> None:
    """`change` the pipeline before attaching, after it, and after it and a run; unguarded images must not come out."""
    skip_if_lacking(guard, case)
    pipe = case.build()
    change(pipe)
    changed = run(case, pipe, PROMPT)
    first, _ = guarded(case, guard, pipe=pipe)
    acts(guard, case, first, changed, "changed, then attached")
    same(run(case, pipe, PROMPT), changed, "changed, attached and detached")
    clean(case, pipe)
    pipe = case.build()
    with sr.attach(pipe, guard.make(pipe, case)) as attached:
        same(run(case, pipe, PROMPT), on_shared(case, guard), "before the change")
        change(pipe)
        second = run(case, pipe, PROMPT)
    assert attached.runs == 2
    same(second, first, "attached, run, then changed, against changed, then attached")
    same(run(case, pipe, PROMPT), changed, "images after detach")
    clean(case, pipe)
    if is_same_image:
        close(first, on_shared(case, guard), "changed against unchanged")


# --- memory and speed


def check_attention_slicing(case: PipelineCase, guard: GuardCase) -> None:
    parts = shared_pipeline(case.name).components.values()
    if not any(hasattr(part, "set_attention_slice") for part in parts):
        raise NotApplicable("no module of the pipeline can slice its attention")
    both_orders(case, guard, lambda pipe: pipe.enable_attention_slicing(1))


def check_vae_tiling(case: PipelineCase, guard: GuardCase) -> None:
    skip_if_lacking(guard, case)
    pipe = case.build()
    pipe.vae.enable_tiling()
    plain_pixels = run(case, pipe, PROMPT, output_type="pt")
    pixels, _ = guarded(case, guard, pipe=pipe, output_type="pt")
    acts(guard, case, pixels, plain_pixels)
    with sr.attach(pipe, guard.make(pipe, case)):
        pipe.vae.disable_tiling()
        pipe.vae.enable_tiling()
        same(run(case, pipe, PROMPT, output_type="pt"), pixels, "tiling switched on after attaching")


def check_model_offload(case: PipelineCase, guard: GuardCase) -> None:
    both_orders(case, guard, lambda pipe: pipe.enable_model_cpu_offload(device="cpu"))


def offload_sequentially(pipe: Any) -> None:
    """What `enable_sequential_cpu_offload` does with every model; by itself it fails on the CPU (accelerate's bug)."""
    for model in pipe.components.values():
        if isinstance(model, torch.nn.Module):
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            add_hook_to_module(model, AlignDevicesHook(io_same_device=True), append=True)
            attach_align_device_hook(
                model, execution_device=torch.device("cpu"), offload=True, weights_map=weights, tied_params_map=None
            )


def check_sequential_offload(case: PipelineCase, guard: GuardCase) -> None:
    pipe = case.build()
    offload_sequentially(pipe)
    assert next(denoiser_of(case, pipe).parameters()).is_meta
    both_orders(case, guard, offload_sequentially)


def check_compiled_module(case: PipelineCase, guard: GuardCase) -> None:
    def wrap(pipe: Any) -> None:
        for name in denoisers(case, pipe):
            setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))

    really_compiled(case, guard, wrap)


def check_compiled_in_place(case: PipelineCase, guard: GuardCase) -> None:
    def compile_in_place(pipe: Any) -> None:
        for name in denoisers(case, pipe):
            getattr(pipe, name).compile(backend="eager")

    really_compiled(case, guard, compile_in_place)


def really_compiled(case: PipelineCase, guard: GuardCase, change: Callable[[Any], object]) -> None:
    torch._dynamo.reset()
    counters.clear()
    both_orders(case, guard, change)
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled, so the check is empty"


def denoisers(case: PipelineCase, pipe: Any) -> list[str]:
    family = family_row(case)
    return [name for name in (family.denoiser, *family.more_denoisers) if getattr(pipe, name, None) is not None]


# --- adapters


def lora_config() -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=64, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)


def add_lora(case: PipelineCase, pipe: Any) -> None:
    """Random LoRA layers on every denoiser, by diffusers where it can, else by peft."""
    for name in denoisers(case, pipe):
        model = getattr(pipe, name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if hasattr(model, "add_adapter"):
                model.add_adapter(lora_config())
            else:
                inject_adapter_in_model(lora_config(), model)


def check_lora(case: PipelineCase, guard: GuardCase) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*other weights.*")  # LoRA is beside the weights, not in them
        both_orders(case, guard, lambda pipe: add_lora(case, pipe), is_same_image=False)
    pipe = case.build()
    add_lora(case, pipe)
    assert is_apart(run(case, pipe, PROMPT), bare(case)), "this LoRA changes nothing, so the check is empty"


def check_loaded_lora(case: PipelineCase, guard: GuardCase) -> None:
    if not hasattr(shared_pipeline(case.name), "load_lora_weights"):
        raise NotApplicable("the pipeline has no load_lora_weights")
    name = family_row(case).denoiser
    source = case.build()
    add_lora(case, source)
    state = get_peft_model_state_dict(getattr(source, name), adapter_name="default")
    state = {f"{name}.{key}": value for key, value in state.items()}
    both_orders(case, guard, lambda pipe: pipe.load_lora_weights(dict(state), adapter_name="x"), is_same_image=False)
    pipe = case.build()
    with sr.attach(pipe, guard.make(pipe, case)):
        pipe.load_lora_weights(dict(state), adapter_name="x")
        run(case, pipe, PROMPT)
        pipe.unload_lora_weights()
        close(run(case, pipe, PROMPT), on_shared(case, guard), "LoRA unloaded again")


def ip_adapter_state(model: Any) -> dict[str, dict[str, Tensor]]:
    """Random IP-Adapter weights for a UNet or for FLUX's transformer; image embeddings of 16 numbers, 4 tokens."""
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * columns**-0.5

    layers: dict[str, Tensor] = {}
    is_flux = not hasattr(model.config, "cross_attention_dim")
    width = model.config.joint_attention_dim if is_flux else model.config.cross_attention_dim
    number = 0 if is_flux else 1
    modules = dict(model.named_modules())
    for name in model.attn_processors:
        if (is_flux and name.startswith("single")) or (not is_flux and name.endswith("attn1.processor")):
            continue
        hidden = modules[name.removesuffix(".processor")].to_q.out_features
        layers |= {f"{number}.{part}_ip.weight": matrix(hidden, width) for part in ("to_k", "to_v")}
        if is_flux:
            layers |= {f"{number}.{part}_ip.bias": torch.zeros(hidden) for part in ("to_k", "to_v")}
        number += 1 if is_flux else 2
    projection = {"proj.weight": matrix(4 * width, image_width(model)), "proj.bias": torch.zeros(4 * width)}
    projection |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    return {"image_proj": projection, "ip_adapter": layers}


def image_width(model: Any) -> int:
    return getattr(model.config, "pooled_projection_dim", None) or 16


def check_ip_adapter(case: PipelineCase, guard: GuardCase) -> None:
    if case.family not in ("stable-diffusion", "stable-diffusion-xl", "flux"):
        shared = shared_pipeline(case.name)
        if hasattr(shared, "load_ip_adapter"):
            raise NotApplicable("diffusers has an IP-Adapter for it, but no tiny one was built here")
        raise NotApplicable("diffusers has no IP-Adapter for it")
    model = denoiser_of(case, shared_pipeline(case.name))
    generator = torch.Generator().manual_seed(1)
    if case.family == "flux":
        pictures = [torch.randn(1, 1, image_width(model), generator=generator)]
        settings = {"ip_adapter_image_embeds": pictures, "negative_ip_adapter_image_embeds": pictures}
    else:
        settings = {"ip_adapter_image_embeds": [torch.randn(2, 1, 16, generator=generator)]}
    skip_if_lacking(guard, case)
    state = ip_adapter_state(model)
    pipe = case.build()
    denoiser_of(case, pipe)._load_ip_adapter_weights([state])
    adapted = run(case, pipe, PROMPT, **settings)
    other = [value.flip(-1) for value in settings["ip_adapter_image_embeds"]]
    assert is_apart(adapted, run(case, pipe, PROMPT, **{**settings, "ip_adapter_image_embeds": other}))
    first, _ = guarded(case, guard, pipe=pipe, **settings)
    acts(guard, case, first, adapted)
    pipe = case.build()
    with sr.attach(pipe, guard.make(pipe, case)):
        run(case, pipe, PROMPT)
        denoiser_of(case, pipe)._load_ip_adapter_weights([state])
        same(run(case, pipe, PROMPT, **settings), first, "adapter loaded after attaching")


# --- copies and other pipelines around the same modules


def check_deepcopy(case: PipelineCase, guard: GuardCase) -> None:
    skip_if_lacking(guard, case)
    pipe = case.build()
    with sr.attach(pipe, guard.make(pipe, case)):
        run(case, pipe, PROMPT)
        other, third = copy.deepcopy(pipe), copy.deepcopy(pipe)
        refuses(lambda: run(case, other, PROMPT), words="copy")
        same(guarded(case, guard, pipe=other)[0], on_shared(case, guard), "a copy with guards of its own")
        same(run(case, pipe, PROMPT), on_shared(case, guard), "the original beside its copy")
    detach(third)
    clean(case, third)
    clean(case, other)
    same(run(case, third, PROMPT), bare(case), "a copy set free")
    raise Refused("A deep copy of a guarded pipeline refuses to run until it gets guards of its own.")


def check_from_pipe(case: PipelineCase, guard: GuardCase) -> None:
    skip_if_lacking(guard, case)
    pipe = case.build()
    other = type(pipe).from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    unguarded = run(case, other, PROMPT)
    with sr.attach(pipe, guard.make(pipe, case)):
        for settings in ({}, dict(case.unguided)):
            for prompt in (PROMPT, [PROMPT, PROMPT]):
                run(case, pipe, PROMPT)
                refuses(lambda: sr.attach(other, guard.make(other, case)), sr.AlreadyAttachedError, "shares")
                try:
                    images = run(case, other, prompt, **settings)
                except sr.GuardError:
                    continue
                acts(guard, case, images, bare(case, prompt, **settings), "a second pipeline around the same modules")
        same(run(case, pipe, PROMPT), on_shared(case, guard), "the first pipeline afterwards")
    same(run(case, other, PROMPT), unguarded, "the second pipeline after detach")
    clean(case, pipe)
    raise Refused("A second pipeline around the same denoiser (from_pipe) cannot be given guards of its own meanwhile.")


def check_scheduler_swapped(case: PipelineCase, guard: GuardCase) -> None:
    own = shared_pipeline(case.name).scheduler

    def swap(pipe: Any, kind: Any) -> None:
        pipe.scheduler = kind.from_config(pipe.scheduler.config)

    both_orders(case, guard, lambda pipe: swap(pipe, type(own)))
    is_flow = "FlowMatch" in type(own).__name__ or own.config.get("prediction_type") == "flow_prediction"
    for kind in flow_schedulers if is_flow else plain_schedulers:
        pipe = case.build()
        swap(pipe, kind)
        try:
            run(case, pipe, PROMPT)
        except (TypeError, ValueError):
            continue  # diffusers itself cannot: the pipeline hands sigmas over, say, and the scheduler takes none
        both_orders(case, guard, lambda pipe, kind=kind: swap(pipe, kind), is_same_image=False)


# not FlowMatchLCM: it draws from the global generator, so that even an unguarded run does not repeat itself
flow_schedulers = (diffusers.FlowMatchHeunDiscreteScheduler, diffusers.FlowMatchEulerDiscreteScheduler)
plain_schedulers = (diffusers.HeunDiscreteScheduler, diffusers.DDIMScheduler)


# --- what must be refused, and what must fail closed


class Failing(Guard[GuardConfig]):
    """Raises, or answers NaN, at one point of intervention; uses them all."""

    method = "failing"

    def __init__(self, point: str, how: str) -> None:
        super().__init__(GuardConfig(concept="star"))
        self.point, self.how = point, how

    def answer(self, point: str, value: Tensor) -> Tensor:
        if point != self.point:
            return value
        if self.how == "raise":
            raise ZeroDivisionError("scripted")
        return value * float("nan")

    def start(self, run: Any) -> None:
        self.answer("start", torch.zeros(1))

    def on_prompt(self, step: Step) -> Tensor:
        return self.answer("on_prompt", step.prompt_embeds)

    def on_step_start(self, step: Step) -> Tensor | Conditioning:
        return self.answer("on_step_start", step.prompt_embeds)

    def on_prediction(self, step: Step) -> Tensor:
        assert step.pred is not None
        return self.answer("on_prediction", step.pred)

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        return self.answer("on_denoised", x0)

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        return self.answer("on_step_end", latents)

    def verdict(self, run: Any, state: Any) -> Any:
        self.answer("verdict", torch.zeros(1))
        return super().verdict(run, state)


POINTS = ("on_prompt", "on_step_start", "on_prediction", "on_denoised", "on_step_end")


def check_exception(case: PipelineCase, guard: GuardCase) -> None:
    pipe = shared_pipeline(case.name)
    for point in ("start", *POINTS, "verdict"):
        with sr.attach(pipe, [Watcher(), Failing(point, "raise")]) as attached:
            refuses(lambda: run(case, pipe, PROMPT), words=point)
        assert attached.runs == 0 and attached.decisions == []
    clean(case, pipe)
    same(run(case, pipe, PROMPT), bare(case), "images after a run that failed")


def check_nan(case: PipelineCase, guard: GuardCase) -> None:
    pipe = shared_pipeline(case.name)
    for point in POINTS:
        with sr.attach(pipe, Failing(point, "nan")) as attached:
            refuses(lambda: run(case, pipe, PROMPT), words="NaN")
        assert attached.runs == 0 and attached.decisions == []
    same(run(case, pipe, PROMPT), bare(case), "images after a run that failed")


def check_other_architecture(case: PipelineCase, guard: GuardCase) -> None:
    pipe = shared_pipeline(case.name)
    made = guard.make(pipe, case)
    if made.config.backbone is None:
        raise NotApplicable("not bound to a backbone")
    other_family = "stable-diffusion" if case.family != "stable-diffusion" else "flux"
    wrong = {**made.config.backbone["architecture"], "family": other_family}
    object.__setattr__(made.config, "backbone", {**made.config.backbone, "architecture": wrong})
    with sr.attach(pipe, made, force=True):
        pass
    must_refuse(
        lambda: sr.attach(pipe, made),
        sr.BackboneMismatchError,
        "another backbone",
        "A guard made for another architecture is not attached, unless with force=True.",
    )


def check_edited_weights(case: PipelineCase, guard: GuardCase) -> None:
    skip_if_lacking(guard, case)
    pipe = case.build()
    made = guard.make(pipe, case)
    if made.config.backbone is None:
        raise NotApplicable("not bound to a backbone")
    with torch.no_grad():
        for weight in denoiser_of(case, pipe).parameters():
            weight.mul_(1.02)
    edited = run(case, pipe, PROMPT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images, _ = guarded(case, made, pipe=pipe)
    assert any("other weights" in str(warning.message) for warning in caught)
    acts(guard, case, images, edited)


# --- what some pipelines have


def calls_of(module: torch.nn.Module, position: int | None = None) -> tuple[list[Tensor], Any]:
    """(prompt embeddings of every call from now on, handle to stop)."""
    seen: list[Tensor] = []

    def look(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = kwargs.get("encoder_hidden_states")
        seen.append(args[position] if value is None and position is not None else value)

    return seen, module.register_forward_pre_hook(look, with_kwargs=True)


def check_controlnet(case: PipelineCase, guard: GuardCase) -> None:
    pipe = shared_pipeline(case.name)
    if not hasattr(pipe, "controlnet"):
        raise NotApplicable("not a ControlNet pipeline")
    skip_if_lacking(guard, case)
    with sr.attach(pipe, guard.make(pipe, case)):
        beside, stop = calls_of(pipe.controlnet, 2)
        given, stop_too = calls_of(pipe.unet, 2)
        images = run(case, pipe, PROMPT)
        stop.remove()
        stop_too.remove()
        for prompt in (PROMPT, [PROMPT, PROMPT]):
            refuses(lambda: run(case, pipe, prompt, guess_mode=True), words="guess_mode")  # noqa: B023
    acts(guard, case, images, bare(case))
    assert len(beside) == len(given)
    for one, other in zip(beside, given, strict=True):
        same(one, other[: len(one)], "prompt embeddings of the ControlNet and of the denoiser")
    off = {"guess_mode": True, **case.unguided}
    if guard.needs != "guidance":
        acts(guard, case, guarded(case, guard, **off)[0], bare(case, **off), "guess mode without guidance")


def check_skip_layers(case: PipelineCase, guard: GuardCase) -> None:
    if family_row(case).auxiliary_kwarg is None or "image" in case.settings:
        raise NotApplicable("no skip-layer guidance")
    skip_if_lacking(guard, case)
    settings = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    pipe = shared_pipeline(case.name)
    unguarded = bare(case, **settings)
    assert is_apart(unguarded, bare(case))
    with sr.attach(pipe, [guard.make(pipe, case), Redirect()]) as attached:
        given, stop = calls_of(denoiser_of(case, pipe))
        images = run(case, pipe, PROMPT, **settings)
        stop.remove()
    assert attached.runs == 1 and is_apart(images, unguarded)
    pairs = [(rows, aside) for rows, aside in itertools.pairwise(given) if len(aside) == 1]
    assert pairs
    for rows, aside in pairs:
        same(rows[1:2], aside, "prompt embeddings of the call with skipped layers")
    close(guarded(case, Watcher(), **settings)[0], unguarded, "skipped layers under a guard that only watches")


def check_step_counts(case: PipelineCase, guard: GuardCase) -> None:
    """Runs that start late, and runs that two transformers share."""
    pipe, watcher = shared_pipeline(case.name), Watcher()
    calls = [0] * len(denoisers(case, pipe))
    handles = []
    for position, name in enumerate(denoisers(case, pipe)):

        def count(*_: Any, position: int = position) -> None:
            calls[position] += 1

        handles.append(getattr(pipe, name).register_forward_pre_hook(count))
    images, attached = guarded(case, watcher, steps=4)
    for handle in handles:
        handle.remove()
    made, (facts,) = len(watcher.steps), watcher.runs
    assert sum(calls) == made * (2 if case.guidance_is_sequential else 1) and min(calls) > 0
    assert made == facts.num_evaluations == len(facts.timesteps) and watcher.steps[-1].index == facts.num_steps - 1
    assert made == getattr(pipe, "_num_timesteps", 4)
    assert made < 4 or case.settings.get("strength", 1) == 1
    assert [float(step.t[0]) for step in watcher.steps] == list(facts.timesteps)
    assert sorted(facts.timesteps, reverse=True) == list(facts.timesteps)
    same(images, bare(case, steps=4), "images under a guard that only watches")
    same_decisions(GuardCase("watcher", lambda pipe, case: Watcher(), is_method=False), attached.decisions, 1)


def check_base_and_refiner(case: PipelineCase, guard: GuardCase) -> None:
    if case.name != "sdxl":
        raise NotApplicable("no denoising_end: not a base of a refiner")
    skip_if_lacking(guard, case)
    base = shared_pipeline("sdxl")
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**base.components)
    refiner.set_progress_bar_config(disable=True)

    def pair(*guards: Guard[Any]) -> tuple[Tensor, list[Watcher]]:
        watchers = [Watcher(), Watcher()]
        with sr.attach(base, [*guards[:1], watchers[0]]):
            half = run(case, base, PROMPT, steps=10, denoising_end=0.6)
        settings = {"image": half, "denoising_start": 0.6, "height": None, "width": None}
        with sr.attach(refiner, [*guards[1:], watchers[1]]):
            return refine(case, refiner, settings), watchers

    unguarded, watchers = pair()
    counts = [watcher.runs[0].num_evaluations for watcher in watchers]
    assert sum(counts) == 10 and counts == [len(watcher.steps) for watcher in watchers], counts
    assert all(watcher.steps[-1].index == watcher.runs[0].num_steps - 1 for watcher in watchers)
    images, _ = pair(guard.make(base, case), guard.make(base, case))
    acts(guard, case, images, unguarded)


def refine(case: PipelineCase, refiner: Any, settings: dict[str, Any]) -> Tensor:
    arguments = {name: value for name, value in settings.items() if value is not None}
    images: Tensor = refiner(
        PROMPT, num_inference_steps=10, output_type="latent", guidance_scale=5.0,
        generator=torch.Generator().manual_seed(0), **arguments,
    ).images  # fmt: skip
    return images


def check_callback(case: PipelineCase, guard: GuardCase) -> None:
    pipe = shared_pipeline(case.name)
    if "callback_on_step_end" not in inspect.signature(type(pipe).__call__).parameters:
        raise NotApplicable("the pipeline takes no callback_on_step_end")
    skip_if_lacking(guard, case)

    def callback(pipe: Any, index: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": values["latents"] * 0.9}

    unguarded = run(case, pipe, PROMPT, callback_on_step_end=callback)
    assert is_apart(unguarded, bare(case))
    same(guarded(case, Watcher(), callback_on_step_end=callback)[0], unguarded, "the user's callback under a watcher")
    acts(guard, case, guarded(case, guard, callback_on_step_end=callback)[0], unguarded)


def check_only_its_rows(case: PipelineCase, guard: GuardCase) -> None:
    """Editing image 0 leaves image 1 as it is, bit for bit."""
    prompts = [PROMPT, "the moon"]
    for made in (X0Editor(0), Redirect(0)):
        images, _ = guarded(case, made, prompts)
        same(images[1], bare(case, prompts)[1], f"the other image under {made.method}")
        assert is_apart(images[:1], bare(case, prompts)[:1])


def check_swapped_denoiser(case: PipelineCase, guard: GuardCase) -> None:
    pipe = case.build()
    name = family_row(case).denoiser
    own = getattr(pipe, name)
    with sr.attach(pipe, guard.make(pipe, case)):
        setattr(pipe, name, copy.deepcopy(getattr(shared_pipeline(case.name), name)))
        refuses(lambda: run(case, pipe, PROMPT))
        setattr(pipe, name, own)
    clean(case, pipe)
    raise Refused("A denoiser replaced under its guards does not run; attach them again.")
