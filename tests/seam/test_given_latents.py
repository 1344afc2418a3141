"""Latents that a caller gives, on every family: noise goes through untouched, the rest is refused or replaced, and said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.newer_pipelines import EVERY
from tests.tiny_pipelines import PIPELINES, PipelineCase, run
from torch import Tensor

import saferedir as sr
from saferedir.errors import GuardError, UnsupportedPipelineError
from saferedir.guards.base import Guard, GuardConfig
from saferedir.pipelines.latent_prior import prior_test
from saferedir.pipelines.latent_refresh import digest_noise, replace_share

#: pipelines of images, whose `latents` stand for something else
REFUSED = {"sd3-img2img", "sdxl-img2img", "sdxl-refiner", "flux-img2img"}
TESTED = sorted({*PIPELINES, "kolors", "ltx-video"} - REFUSED - {"sd-img2img"})


class Checker(Guard[GuardConfig]):
    """Tests latents and does nothing else."""

    method = "checker"

    def __init__(self, kind: str, rate: float = 1e-3, share: float = 0.5) -> None:
        super().__init__(GuardConfig(concept="star"))
        self.latents_test, self.latents_false_positives, self.latents_fresh_share = kind, rate, share


def mixed_with_its_noise(latents: Tensor, share: float) -> Tensor:
    return replace_share(latents, digest_noise(latents), share)


def shape_of(case: PipelineCase, pipe: Any) -> tuple[int, ...]:
    """(1, ...) of the latents that the pipeline takes."""
    shapes: list[tuple[int, ...]] = []
    original = pipe.prepare_latents

    def watched(*args: Any, **kwargs: Any) -> Any:
        answer = original(*args, **kwargs)
        shapes.append(tuple((answer[0] if isinstance(answer, tuple) else answer).shape))
        return answer

    pipe.prepare_latents = watched
    run(case, pipe, steps=2)
    del pipe.prepare_latents
    return shapes[0]


@pytest.mark.parametrize("name", TESTED)
def test_noise_goes_through_and_the_rest_is_replaced(name: str) -> None:
    case = EVERY[name]
    pipe = case.build()
    shape = shape_of(case, pipe)
    good = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    given, drawn = run(case, pipe, steps=2, latents=good), run(case, pipe, steps=2)
    with sr.attach(pipe, Checker("refresh")) as attached:
        assert torch.equal(run(case, pipe, steps=2, latents=good), given)
        assert attached.decisions[0].message == ""
        assert torch.equal(run(case, pipe, steps=2), drawn)
        assert torch.equal(run(case, pipe, steps=2, latents=2 * good), drawn)
        assert "were replaced by fresh noise" in attached.decisions[0].message
        assert torch.equal(run(case, pipe, steps=2), drawn) and attached.decisions[0].message == ""
    with sr.attach(pipe, Checker("refuse")):
        assert torch.equal(run(case, pipe, steps=2, latents=good), given)
        with pytest.raises(GuardError, match=r"latents given for image 0 do not look like noise \(mean square"):
            run(case, pipe, steps=2, latents=2 * good)
    mixed = run(case, pipe, steps=2, latents=mixed_with_its_noise(good, 0.3))
    with sr.attach(pipe, Checker("refresh_all", share=0.3)) as attached:
        assert torch.equal(run(case, pipe, steps=2), drawn) and attached.decisions[0].message == ""
        assert torch.equal(run(case, pipe, steps=2, latents=good), mixed) and not torch.equal(mixed, given)
        assert (
            attached.decisions[0].message
            == "A share of 0.3 of the latents given was replaced by noise that they decide."
        )
        with pytest.raises(GuardError, match=r"latents given for image 0 do not look like noise \(mean square"):
            run(case, pipe, steps=2, latents=2 * good)
    assert "prepare_latents" not in vars(pipe)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_where_latents_stand_for_something_else_attach_refuses(name: str) -> None:
    pipe = PIPELINES[name].build()
    for kind in ("refuse", "refresh_all"):
        with pytest.raises(UnsupportedPipelineError, match="depends on its other arguments; set latents_test to 'off'"):
            sr.attach(pipe, Checker(kind))
    sr.attach(pipe, Checker("off")).detach()


def test_pipelines_without_latents_have_nothing_to_test() -> None:
    case = PIPELINES["sd-img2img"]
    pipe = case.build()
    bare = run(case, pipe)
    with sr.attach(pipe, Checker("refuse")):
        assert torch.equal(run(case, pipe), bare)


@pytest.mark.parametrize("name", ["sd-img2img"])
@pytest.mark.parametrize("kind", ["refuse", "refresh", "refresh_all"])
def test_an_image_handed_over_as_latents_is_refused(name: str, kind: str) -> None:
    """diffusers takes a tensor with the autoencoder's channels for latents, whose start an attack can choose value by value."""
    case = EVERY[name]
    pipe = case.build()
    shape = shape_of(case, pipe)
    latents = torch.randn(
        shape[0], pipe.vae.config.latent_channels, *shape[-2:], generator=torch.Generator().manual_seed(5)
    )
    assert torch.isfinite(run(case, pipe, steps=2, image=latents)).all()
    with sr.attach(pipe, Checker(kind)):
        assert torch.isfinite(run(case, pipe, steps=2)).all()
        with pytest.raises(GuardError, match="give an RGB image"):
            run(case, pipe, steps=2, image=latents)
    with sr.attach(pipe, Checker("off")):
        assert torch.isfinite(run(case, pipe, steps=2, image=latents)).all()


@pytest.mark.parametrize("name", ["sd-inpaint", "sd-inpaint9", "sdxl-inpaint"])
def test_masked_images_come_as_images(name: str) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    bare = run(case, pipe, steps=2)
    with sr.attach(pipe, Checker("refresh")):
        with pytest.raises(GuardError, match="masked_image_latents are given, which guard 'checker' cannot test"):
            run(case, pipe, steps=2, masked_image_latents=torch.zeros(1, 4, 8, 8))
        assert torch.equal(run(case, pipe, steps=2), bare)


def test_no_latents_are_taken_where_that_is_asked_for() -> None:
    """Honest noise neither, under any stack; a call without latents is the bare one, bit for bit."""
    case = PIPELINES["sd"]
    pipe = case.build()
    noise = torch.randn(shape_of(case, pipe), generator=torch.Generator().manual_seed(5))
    bare = run(case, pipe, steps=2)
    with sr.attach(pipe, [Checker("refresh"), Checker("refuse_all")]):
        assert torch.equal(run(case, pipe, steps=2), bare)
        with pytest.raises(GuardError, match=r"takes none .* give a generator in their place"):
            run(case, pipe, steps=2, latents=noise)


def test_a_row_never_depends_on_its_neighbours() -> None:
    case = PIPELINES["sd"]
    pipe = case.build()
    good = torch.randn(2, *shape_of(case, pipe)[1:], generator=torch.Generator().manual_seed(5))
    mixed = torch.stack([good[0], 3 * good[1]])
    both, drawn = run(case, pipe, ["a", "b"], latents=good), run(case, pipe, ["a", "b"])
    with sr.attach(pipe, Checker("refresh")) as attached:
        out = run(case, pipe, ["a", "b"], latents=mixed)
    assert torch.equal(out[0], both[0]) and torch.equal(out[1], drawn[1])
    assert [bool(decision.message) for decision in attached.decisions] == [False, True]


def test_refreshed_latents_give_the_same_image_again_in_a_batch_as_alone_whatever_the_generator() -> None:
    case = PIPELINES["sd"]
    pipe = case.build()
    good = torch.randn(2, *shape_of(case, pipe)[1:], generator=torch.Generator().manual_seed(5))
    both = run(case, pipe, ["a", "b"], latents=mixed_with_its_noise(good, 0.5))
    with sr.attach(pipe, Checker("refresh_all")):
        together = run(case, pipe, ["a", "b"], latents=good)
        again = run(case, pipe, ["b", "b"], latents=good[[1, 1]])
    assert torch.equal(together, both)
    assert torch.equal(again[0], again[1]) and torch.allclose(again[0], together[1], atol=1e-5)


def test_a_share_of_one_takes_the_latents_for_a_seed() -> None:
    case = PIPELINES["sd"]
    pipe = case.build()
    good = torch.randn(shape_of(case, pipe), generator=torch.Generator().manual_seed(5))
    expected = run(case, pipe, latents=digest_noise(good))
    with sr.attach(pipe, Checker("refresh_all", share=1.0)):
        assert torch.equal(run(case, pipe, latents=good), expected)


def test_of_several_guards_the_largest_share_counts_and_rows_that_fail_another_are_replaced() -> None:
    """A limit of .9 is failed by honest noise, too: that row is the pipeline's own noise, the other one is mixed."""
    case = PIPELINES["sd"]
    pipe = case.build()
    good = torch.randn(12, *shape_of(case, pipe)[1:], generator=torch.Generator().manual_seed(5))
    failed = prior_test(good).p_value < 0.9
    assert bool(failed.any()) and not bool(failed.all())
    rows = torch.stack([good[failed][0], good[~failed][0]])
    drawn = run(case, pipe, ["a", "b"])
    mixed = run(case, pipe, ["a", "b"], latents=mixed_with_its_noise(rows, 0.6))
    with sr.attach(
        pipe, [Checker("refresh", 0.9), Checker("refresh_all", share=0.2), Checker("refresh_all", share=0.6)]
    ) as on:
        out = run(case, pipe, ["a", "b"], latents=rows)
    assert torch.equal(out[0], drawn[0]) and torch.equal(out[1], mixed[1])
    messages = [decision.message for decision in on.decisions]
    assert "were replaced by fresh noise" in messages[0] and "A share of 0.6" in messages[1]


def test_a_disabled_guard_tests_nothing_and_one_that_refuses_wins() -> None:
    case = PIPELINES["sd"]
    pipe = case.build()
    bad = 3 * torch.randn(shape_of(case, pipe), generator=torch.Generator().manual_seed(5))
    bare, guard = run(case, pipe, latents=bad), Checker("refuse")
    with sr.attach(pipe, [Checker("refresh"), guard]):
        with pytest.raises(GuardError, match="do not look like noise"):
            run(case, pipe, latents=bad)
    guard.enabled = False
    with sr.attach(pipe, guard):
        assert torch.equal(run(case, pipe, latents=bad), bare)


def test_a_policy_says_what_was_replaced_and_a_retry_replaces_it_again() -> None:
    case = PIPELINES["sd"]
    pipe = case.build()
    bad = 3 * torch.randn(shape_of(case, pipe), generator=torch.Generator().manual_seed(5))
    arguments = {**case.settings, **case.guidance, "num_inference_steps": 2, "latents": bad}
    answers = iter([[True], [False]])
    safe = sr.protect(pipe, Checker("refresh"), on_unsafe="verify", verify=lambda images: next(answers))
    output = safe("a star", generator=torch.Generator().manual_seed(0), **arguments)
    assert output.decisions[0].attempts == 2 and "fresh noise" in output.decisions[0].message
    safe.detach()
