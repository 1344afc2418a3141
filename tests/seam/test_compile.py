"""Guarded pipelines under `torch.compile`: the denoiser a graph without a break, compiled once; the images of the eager run."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from tests.contract.feature import denoiser_of, guarded, same
from tests.contract.guards import GUARDS, PROMPT, GuardCase, by_config, make_saferedir
from tests.tiny_pipelines import PIPELINES, PipelineCase, run
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

import saferedir as sr
from saferedir.guards.saferedir.network import PIECES
from saferedir.pipelines.families import family_of, is_compiled
from saferedir.seam.begin import _has_compiled_encoder
from saferedir.seam.feature_hooks import _warn_once

#: SAFREE that also damps the skip features of a UNet
DAMPING = GuardCase("safree", by_config("safree", margin=-1.0, svf="off", negative=False, lra="paper"), kind="rows")
METHODS = {name: case for name, case in GUARDS.items() if case.is_method}
OPTIONS: dict[str, Any] = {"fullgraph": True}


class Compiled(NamedTuple):
    """A compiled pipeline: its denoiser, the graphs that it has by now, and what it generates without guards."""

    case: PipelineCase
    pipe: Any
    graphs: CompileCounter
    bare: Tensor


def compiled(name: str) -> Compiled:
    """A pipeline whose denoiser is compiled block by block, as diffusers advises."""
    case, graphs = PIPELINES[name], CompileCounter()
    pipe: Any = case.build()
    denoiser_of(case, pipe).compile_repeated_blocks(backend=graphs, **OPTIONS)
    return Compiled(case, pipe, graphs, run(case, pipe, PROMPT))


@pytest.fixture(scope="module", params=["sd", "flux"])
def pipeline(request: pytest.FixtureRequest) -> Iterator[Compiled]:
    torch.compiler.reset()
    yield compiled(request.param)
    torch.compiler.reset()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_guards_a_compiled_pipeline(pipeline: Compiled, name: str) -> None:
    case, method = pipeline.case, METHODS[name]
    if lack := method.lacks(case):
        pytest.skip(lack)
    wanted, eager = guarded(case, method)
    counters.clear()
    with sr.attach(pipeline.pipe, method.make(pipeline.pipe, case)) as attached:
        first = run(case, pipeline.pipe, PROMPT)
        graphs = pipeline.graphs.frame_count
        same(run(case, pipeline.pipe, PROMPT), first, "the second run")
    same(first, wanted, "compiled against eager")
    assert attached.decisions == eager.decisions
    assert pipeline.graphs.frame_count == graphs, "compiled again in the second run"
    assert not counters["graph_break"]
    same(run(case, pipeline.pipe, PROMPT), pipeline.bare, "after detaching")


def test_a_benign_image_is_that_of_the_compiled_pipeline(pipeline: Compiled) -> None:
    case = pipeline.case
    guard = make_saferedir(pipeline.pipe, case)
    benign = guard.with_settings(prompt_threshold=1e3, image_threshold=1e3)
    graphs = pipeline.graphs.frame_count
    images, attached = guarded(case, benign, pipe=pipeline.pipe)
    same(images, pipeline.bare, "benign")
    assert not attached.decisions[0].fired
    assert pipeline.graphs.frame_count == graphs


@pytest.mark.parametrize(("guard", "is_wrapped"), [(METHODS["nag"], True), (DAMPING, False)])
def test_a_whole_unet_compiled_while_guards_that_edit_its_features_are_attached(
    guard: GuardCase, is_wrapped: bool
) -> None:
    torch.compiler.reset()
    case, graphs = PIPELINES["sd"], CompileCounter()
    pipe: Any = case.build()
    with sr.attach(pipe, guard.make(pipe, case)) as attached:
        if is_wrapped:
            pipe.unet = torch.compile(pipe.unet, backend=graphs, **OPTIONS)
        else:
            pipe.unet.compile(backend=graphs, **OPTIONS)
        images = run(case, pipe, PROMPT)
        assert graphs.frame_count == 1, "not one graph for all steps"
        same(run(case, pipe, PROMPT), images, "the second run")
        assert graphs.frame_count == 1
        if is_wrapped:
            run(case, pipe, [PROMPT, "the moon"])
            assert graphs.frame_count == 2
    assert attached.runs == 2 + is_wrapped
    same(images, guarded(case, guard)[0], "compiled against eager")


@pytest.mark.parametrize("name", ["saferedir", "saferedir_many"])
def test_a_guard_compiles_its_networks(name: str) -> None:
    """Each piece is one graph; every step gives it tensors of the same shapes and strides, which CUDA graphs need."""
    torch.compiler.reset()
    counters.clear()
    case, graphs = PIPELINES["sd"], CompileCounter()
    pipe: Any = case.build()
    wanted, eager = guarded(case, METHODS[name])
    guard: Any = METHODS[name].make(pipe, case)
    guard.compile(backend=graphs, **OPTIONS)
    layouts: dict[str, list[Any]] = {piece: [] for piece in PIECES}
    for piece in PIECES:
        recorded(guard.network, piece, layouts[piece])
    first, attached = guarded(case, guard, pipe=pipe, steps=3)
    made = graphs.frame_count
    same(first, wanted, "compiled against eager")
    assert attached.decisions == eager.decisions
    same(guarded(case, guard, pipe=pipe)[0], first, "the second run")
    assert 0 < made == graphs.frame_count
    assert len(layouts["image_logits"]) == 6
    assert all(len(set(found)) <= 1 for found in layouts.values())
    guarded(case, guard, [PROMPT, "the moon"], pipe=pipe)
    assert graphs.frame_count <= 2 * made
    assert not counters["graph_break"]


def recorded(network: Any, piece: str, layouts: list[Any]) -> None:
    """Notes shapes and strides of the tensors that a piece of a network is given."""
    original = getattr(network, piece)

    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
            layouts.append(tuple((tuple(each.shape), each.stride(), each.dtype) for each in tensors))
        return original(*args, **kwargs)

    setattr(network, piece, call)


def test_a_compiled_forward_counts_as_compiled() -> None:
    module: Any = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert not is_compiled(module)
    module[0].forward = torch.compiler.disable(module[0].forward)
    assert not is_compiled(module)
    module[0].forward = torch.compile(torch.nn.Linear(2, 2).forward, backend="eager")
    assert is_compiled(module)
    module[0]._old_forward, module[0].forward = module[0].forward, lambda value: value
    assert is_compiled(module)


def test_the_encoder_of_a_pipeline_may_be_a_compiled_forward() -> None:
    case = PIPELINES["sd"]
    pipe: Any = case.build()
    assert not _has_compiled_encoder(pipe, family_of(pipe))
    pipe.unet.forward = torch.compile(pipe.unet.forward, backend="eager")
    assert not _has_compiled_encoder(pipe, family_of(pipe))
    pipe.text_encoder.forward = torch.compile(pipe.text_encoder.forward, backend="eager")
    assert _has_compiled_encoder(pipe, family_of(pipe))


@pytest.mark.parametrize("guard", [METHODS["nag"], DAMPING], ids=["nag", "safree"])
@pytest.mark.parametrize("is_whole", [True, False])
def test_what_is_compiled_with_and_without_hooks_is_kept_side_by_side(
    guard: GuardCase, is_whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    case, graphs = PIPELINES["sd"], CompileCounter()
    pipe: Any = case.build()
    classes = list(map(type, pipe.unet.modules()))
    (pipe.unet.compile if is_whole else pipe.unet.compile_repeated_blocks)(backend=graphs, **OPTIONS)
    bare, other = run(case, pipe, PROMPT), torch.compile(torch.sin, backend="eager")
    monkeypatch.setattr(torch.compiler, "reset", lambda: pytest.fail("others' graphs were forgotten"))
    wanted, made = guarded(case, guard)[0], graphs.frame_count
    assert other(torch.zeros(1)) == 0

    def guarded_run(prompt: Any = PROMPT) -> Tensor:
        with sr.attach(pipe, guard.make(pipe, case)):
            copied = copy.deepcopy(pipe)
            images = run(case, pipe, prompt)
        sr.detach(copied)
        assert list(map(type, pipe.unet.modules())) == list(map(type, copied.unet.modules())) == classes
        return images

    same(guarded_run(), wanted, "compiled before the hooks came")
    with_hooks = graphs.frame_count
    assert with_hooks > made
    for _ in range(2):
        same(run(case, pipe, PROMPT), bare, "after detaching")
        same(guarded_run(), wanted, "attached again")
    assert graphs.frame_count == with_hooks
    pair = [PROMPT, "the moon"]
    run(case, pipe, pair)  # graphs without hooks, made when there were others with them
    same(guarded_run(pair), guarded(case, guard, pair)[0], "another batch size")


def test_where_no_class_is_looked_at_what_is_compiled_is_forgotten_and_that_is_said_once() -> None:
    case = PIPELINES["sd"]
    pipe: Any = case.build()
    _warn_once.cache_clear()
    torch.compiler.reset()
    with torch._dynamo.config.patch(guard_nn_modules=False), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sr.attach(pipe, METHODS["nag"].make(pipe, case)).detach()
        assert not [each for each in caught if "is forgotten" in str(each.message)]
        pipe.unet.compile(backend="eager")
        bare = run(case, pipe, PROMPT)
        for _ in range(2):
            with sr.attach(pipe, METHODS["nag"].make(pipe, case)):
                same(run(case, pipe, PROMPT), guarded(case, METHODS["nag"])[0], "compiled against eager")
        same(run(case, pipe, PROMPT), bare, "after detaching")
    assert ["is forgotten" in str(each.message) for each in caught].count(True) == 1
    torch.compiler.reset()


def test_a_copy_of_a_compiled_network_is_one_of_its_own() -> None:
    case = PIPELINES["sd"]
    network = make_saferedir(None, case).network
    latent, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0])
    before = network.image_logits(latent, t)
    network.compile(backend="eager")
    other = copy.deepcopy(network)
    with torch.no_grad():
        for value in other.parameters():
            value.zero_()
        assert not other.image_logits(latent, t).any()
        assert torch.equal(network.image_logits(latent, t), before)
    assert replace(network.config) == other.config
