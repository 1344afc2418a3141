"""SAFREE: its mathematics against d x d algebra and hand-made cases, and the guard on every tiny pipeline."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.conftest import generate, make_pipeline
from tests.guards.guidance_probe import RowCounter, by_case, close
from tests.tiny.unets import make_sd, make_sdxl
from tests.tiny_pipelines import PIPELINES, PipelineCase, run
from torch import Tensor

import saferedir as sr
from saferedir.attach import detach
from saferedir.guard import Conditioning, Guard, GuardConfig, Run, Step
from saferedir.guards.safree import Safree, SafreeConfig
from saferedir.guards.safree.math import (
    away,
    basis,
    damped,
    filtered,
    gram_tolerance,
    is_filtered,
    last_step,
    last_step_paper,
    onto,
    strength,
    triggers,
)
from saferedir.pipelines.encoding import encode_prompts
from saferedir.pipelines.families import FAMILIES
from saferedir.pipelines.text_encoders import TextEncoder, make_text_encoders
from saferedir.utils.device import rehearsal

CASES = ["sd", "sdxl", "sd3", "flux-true-cfg", "pixart-sigma", "wan"]
PROMPT, PHRASES = "a star b", ("the moon", "a lamp")
ACTING: dict[str, Any] = {"margin": -1.0, "svf": "off"}  # every token in every step


def safree(**settings: Any) -> Safree:
    return Safree(SafreeConfig(**{"concept": "moon", "phrases": PHRASES, **settings}))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Spy(Guard[GuardConfig]):
    """Keeps run and steps as a guard after the others sees them."""

    method = "spy"
    needs_text = True

    def __init__(self) -> None:
        super().__init__(GuardConfig(concept="x"))
        self.runs: list[Run] = []
        self.steps: list[Step] = []

    def start(self, run: Run) -> None:
        self.runs.append(run)

    def on_step_start(self, step: Step) -> Tensor:
        self.steps.append(step)
        return step.prompt_embeds


# --- projections


def projector(rows: Tensor) -> Tensor:
    """P (d, d) by the authors' formula, in float64."""
    wide = rows.double()
    return wide.mT @ torch.linalg.pinv(wide @ wide.mT, rtol=1e-6) @ wide


@pytest.mark.parametrize("count, width", [(1, 6), (4, 12), (17, 64), (20, 8)])
def test_a_basis_makes_an_orthogonal_projector(count: int, width: int) -> None:
    rows, x = randn(count, width), randn(5, width, seed=1)
    v = basis(rows, 1e-3)
    p = v @ v.mT
    assert v.shape[1] == min(count, width) and torch.allclose(p, p.mT)
    assert torch.allclose(p @ p, p, atol=1e-5)
    torch.testing.assert_close(onto(onto(x, v), v), onto(x, v), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(onto(x, v).double(), x.double() @ projector(rows), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(onto(rows, v), rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ["code", "paper"])
def test_bases_equal_the_square_form(order: str) -> None:
    c, m, t = randn(3, 24), randn(7, 24, seed=1), randn(9, 24, seed=2)
    p_c, p_i, one = projector(c), projector(m), torch.eye(24).double()
    square = ((one - p_c) @ p_i if order == "code" else p_i @ (one - p_c)) @ t.double().mT
    new = filtered(t, basis(c, 1e-3), basis(m, 1e-3), order)
    torch.testing.assert_close(new.double(), square.mT, rtol=1e-5, atol=1e-5)


def test_each_order_keeps_what_it_promises() -> None:
    c, m, t = basis(randn(3, 24), 1e-3), basis(randn(7, 24, seed=1), 1e-3), randn(9, 24, seed=2)
    code, paper = filtered(t, c, m, "code"), filtered(t, c, m, "paper")
    assert onto(code, c).norm() <= 1e-5 * code.norm() < 1e-2 * onto(paper, c).norm()  # nothing of the concept is left
    assert away(paper, m).norm() <= 1e-5 * paper.norm() < 1e-2 * away(code, m).norm()  # nothing but the prompt's own
    assert onto(filtered(t, c, None, "code"), c).norm() <= 1e-4
    padded = torch.cat([t[:5], randn(4, 24, seed=3)])  # other closing and padding tokens
    assert torch.equal(filtered(padded, c, m, "code")[:5], code[:5])


def test_duplicate_phrases_change_nothing_and_noise_is_no_direction() -> None:
    rows = randn(3, 16)
    v, twice = basis(rows, 1e-3), basis(torch.cat([rows, rows, rows[:1] * (1 + 1e-5)]), 1e-3)
    assert twice.shape == v.shape and torch.allclose(v @ v.mT, twice @ twice.mT, atol=1e-4)


def test_the_faithful_tolerance_is_that_of_the_pseudo_inverse() -> None:
    directions = torch.linalg.qr(randn(16, 3)).Q.mT
    for small, rank in ((3e-3, 3), (2e-4, 2)):
        rows = torch.tensor([1.0, 0.5, small])[:, None] * directions
        gram = rows @ rows.mT
        assert int((torch.linalg.pinv(gram).diagonal() > 1e-3).sum()) == basis(rows, gram_tolerance(3)).shape[1] == rank


# --- triggers and the length of the filter


def masked_sums(tokens: Tensor) -> Tensor:
    """M of a prompt whose pooled embedding is the sum of its tokens."""
    return tokens.sum(0) - tokens


def test_of_orthogonal_tokens_exactly_the_concept_is_a_trigger() -> None:
    tokens = torch.eye(8)[:5]
    for concept in range(5):
        found = triggers(masked_sums(tokens), basis(tokens[concept : concept + 1], 1e-3), 0.01)
        assert found.nonzero().flatten().tolist() == [concept]


def test_margins_and_short_prompts() -> None:
    m, c = randn(6, 12), basis(randn(2, 12, seed=1), 1e-3)
    assert not triggers(m, c, math.inf).any() and triggers(m, c, -1.0).all()
    assert triggers(m[:1], c, 0.01).tolist() == [True] and triggers(m[:1], c, math.inf).tolist() == [False]
    counts = [int(triggers(m, c, margin).sum()) for margin in (-1.0, -0.1, 0.0, 0.1, 1.0)]
    assert counts == sorted(counts, reverse=True)


def test_golden_two_phrases_four_tokens() -> None:
    """d = 6, phrases along axes 0 and 1, tokens along 2, 3, (0 + 4) and 5; pooled embeddings are sums of tokens."""
    axes = torch.eye(6)
    tokens = torch.stack([axes[2], axes[3], axes[0] + axes[4], axes[5]])
    masked = masked_sums(tokens)
    c = basis(axes[:2], 1e-3)
    # D = sqrt 3 for each: the concept's own axis is gone from all, one ordinary axis from each
    assert triggers(masked, c, 0.01).tolist() == [False] * 4 and triggers(masked, c, 0.0).tolist() == [True] * 4
    own = basis(masked, 1e-3)
    new = filtered(tokens, c, own, "code")
    expected = tokens.clone()
    expected[2, 0] = 0.0  # within the prompt's span, and the concept's axis taken out
    torch.testing.assert_close(new, expected)
    every = torch.ones(4, dtype=torch.bool)
    assert float(strength(tokens, new, every)) == pytest.approx((1 - 2**-0.5) / 4)
    assert float(strength(tokens, new, torch.tensor([True, True, False, False]))) == pytest.approx(0.0, abs=1e-6)
    # an axis 1 beside an ordinary one makes the third token stand out: masking it costs the prompt nothing but the concept
    tokens[2] = axes[1]
    assert triggers(masked_sums(tokens), c, 0.01).tolist() == [False, False, True, False]


B = (0.40, 0.45, 0.48, 0.50, 0.533, 0.55, 0.57, 0.60, 0.70)
GENERAL, ARTISTS = (0, 0, 1, 2, 5, 7, 9, 10, 10), {0.533: 2, 0.55: 5, 0.57: 8, 0.60: 10}


def test_the_table_of_t() -> None:
    assert [int(last_step(torch.tensor(b), "general")) for b in B] == list(GENERAL)
    assert {b: int(last_step(torch.tensor(b), "artists")) for b in ARTISTS} == ARTISTS
    ends = [last_step_paper(torch.tensor([1.0, 0.0]), torch.tensor(new)) for new in ([1.0, 0.0], [-1.0, 0.0])]
    assert [int(end) for end in ends] == [5, 9]  # the paper's only spans 5.0 to 8.8


@pytest.mark.parametrize("last", [-1, 0, 1, 4, 10])
def test_counts_of_filtered_steps(last: int) -> None:
    t = torch.tensor([float(last)])
    counts = {n: sum(bool(is_filtered(i, n, t, False)) for i in range(n)) for n in (10, 25, 50, 100)}
    faithful = {n: sum(bool(is_filtered(i, n, t, True)) for i in range(n)) for n in (10, 50)}
    if last <= 0:
        assert set(counts.values()) == {0}
    else:
        assert counts[50] == last + 1 and counts[100] == 2 * (last + 1) and counts[10] == math.ceil((last + 1) / 5)
    assert faithful == {10: min(last + 1, 10), 50: last + 1}
    assert bool(is_filtered(49, 50, torch.tensor([math.inf]), False))


# --- latent re-attention


def test_damping_touches_only_greater_low_frequencies() -> None:
    skip, reference = randn(2, 3, 8, 12), randn(2, 3, 8, 12, seed=1)
    out = damped(skip, reference, 0.3)

    def shifted(x: Tensor) -> Tensor:
        return torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1))

    mine, theirs = shifted(skip), shifted(reference)
    low = torch.zeros(8, 12, dtype=torch.bool)
    low[3:5, 5:7] = True  # the centred 2 x 2
    expected = torch.where(low & (mine.abs() > theirs.abs()), 0.3 * mine, mine)
    torch.testing.assert_close(
        out, torch.fft.ifft2(torch.fft.ifftshift(expected, dim=(-2, -1))).real, rtol=1e-5, atol=1e-5
    )
    assert torch.equal(damped(skip, skip, 0.3), skip) and torch.equal(damped(skip, reference, 1.0), skip)
    assert torch.equal(damped(skip, 100 * reference, 0.3), skip) and not torch.equal(out, skip)
    assert damped(skip.bfloat16(), reference.bfloat16(), 0.3).dtype == torch.bfloat16


def test_without_lra_no_row_rides_and_no_hook_is_on_the_up_blocks() -> None:
    pipe = make_sd()
    with sr.attach(pipe, safree(**ACTING)), RowCounter(pipe.unet) as counter:
        generate(pipe, PROMPT)
        assert not any(block._forward_pre_hooks for block in pipe.unet.up_blocks)
    assert set(counter.counts) == {2}


@pytest.mark.parametrize("make", [make_sd, make_sdxl])
def test_lra_damps_the_filtered_rows_and_no_others(make: Any) -> None:
    pipe = make()
    settings = {"height": 32, "width": 32}
    with sr.attach(pipe, safree(**ACTING)), RowCounter(pipe.unet) as counter:
        plain, before = generate(pipe, [PROMPT, "c d"], **settings), counter.outputs[0]
    with sr.attach(pipe, safree(**ACTING, lra="paper", lra_factors=(1.0, 1.0))), RowCounter(pipe.unet) as counter:
        with_rows = generate(pipe, [PROMPT, "c d"], **settings)
    assert set(counter.counts) == {6} and close(with_rows, plain)  # factor 1: the rows ride, nothing is damped
    unscaled = counter.outputs[0]
    with sr.attach(pipe, safree(**ACTING, lra="paper")), RowCounter(pipe.unet) as counter:
        blocks = [len(block._forward_pre_hooks) for block in pipe.unet.up_blocks]
        lra = generate(pipe, [PROMPT, "c d"], **settings)
    assert set(blocks) == {1} and not any(block._forward_pre_hooks for block in pipe.unet.up_blocks)
    scaled = counter.outputs[0]  # of the same noise: rows n n, filtered filtered, unfiltered unfiltered
    for rows, same in (((0, 2), True), ((2, 4), False), ((4, 6), True)):
        assert torch.equal(scaled[slice(*rows)], unscaled[slice(*rows)]) is same
    assert len(before) == 4 and close(unscaled[:4], before) and not close(lra, plain, 1e-3)


def test_lra_rides_only_in_the_steps_that_filter() -> None:
    pipe = make_sd()
    bare = generate(pipe, PROMPT)
    guard = safree(margin=-1.0, lra="paper", svf="paper")  # t' is 5 to 9
    with sr.attach(pipe, guard) as attached, RowCounter(pipe.unet) as counter:
        generate(pipe, PROMPT, num_inference_steps=25)
    filtered_calls = attached.decisions[0].steps_redirected
    assert 3 <= filtered_calls <= 5 and counter.counts == [3] * filtered_calls + [2] * (25 - filtered_calls)
    with sr.attach(pipe, safree(margin=None, lra="paper", negative=False)):
        assert torch.equal(generate(pipe, PROMPT), bare)


def test_no_row_rides_on_a_device_either_where_no_prompt_has_a_trigger() -> None:
    pipe = PIPELINES["sd"].build()
    for margin, rows in ((None, 2), (-1.0, 3)):
        guard = safree(margin=margin, lra="paper", svf="off", negative=False)
        with sr.attach(pipe, guard), RowCounter(pipe.unet) as counter, rehearsal():
            run(PIPELINES["sd"], pipe, PROMPT)
        assert set(counter.counts) == {rows}


def test_lra_sees_each_stage_of_the_unet() -> None:
    class Stages(Guard[GuardConfig]):
        method = "stages"

        def start(self, run: Run) -> list[Any]:
            seen.clear()
            return seen

        def on_skip_features(self, step: Step, skip: Any) -> Tensor:
            seen.append((skip.stage, tuple(skip.cond.shape), skip.uncond is not None, skip.extra))
            return skip.cond

    seen: list[Any] = []
    pipe = make_sd()
    bare = generate(pipe, PROMPT)
    with sr.attach(pipe, Stages(GuardConfig(concept="x"))):
        assert torch.equal(generate(pipe, PROMPT, num_inference_steps=1), generate(pipe, PROMPT, num_inference_steps=1))
        assert torch.equal(generate(pipe, PROMPT), bare)
    layers = [len(block.resnets) for block in pipe.unet.up_blocks]
    assert len(seen) == 3 * sum(layers) and all(guided and extra == () for _, _, guided, extra in seen)
    assert [stage for stage, *_ in seen[: sum(layers)]] == [0] * (layers[0] + 1) + [1] * (layers[1] - 1)


def test_a_unet_that_hides_its_skip_features_is_refused() -> None:
    pipe = make_sd()
    with sr.attach(pipe, safree(**ACTING, lra="paper")):
        for block in pipe.unet.up_blocks:
            block._forward_pre_hooks.clear()
        with pytest.raises(sr.GuardError, match="skip features"):
            generate(pipe, PROMPT)
    with pytest.raises(sr.GuardError, match="has no UNet"):
        sr.attach(PIPELINES["sd3"].build(), safree(lra="paper"))


# --- text_encoders and texts


def encoders_of(case: PipelineCase, pipe: Any, length: int) -> tuple[TextEncoder, ...]:
    return make_text_encoders(pipe, FAMILIES[case.family], length)


@pytest.mark.parametrize("name", CASES)
def test_text_encoder_states_in_place_are_the_prompt_embeddings(name: str) -> None:
    case = PIPELINES[name]
    pipe, texts = case.build(), [PROMPT, "", "ab cd " * 90]
    with torch.no_grad():
        embeds = encode_prompts(pipe, texts)
        placed, pooled_only = torch.zeros_like(embeds.prompt), 0
        for text_encoder in encoders_of(case, pipe, embeds.prompt.shape[1]):
            states, pooled = text_encoder.states(text_encoder.ids(texts))
            if text_encoder.tokens is None:
                assert embeds.pooled is not None
                torch.testing.assert_close(pooled, embeds.pooled)
                pooled_only += 1
            else:
                placed[:, text_encoder.tokens, text_encoder.channels] = states
    torch.testing.assert_close(placed, embeds.prompt, rtol=1e-5, atol=1e-5)
    assert pooled_only == (case.family == "flux")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_mask_of_t5_in_the_form_of_its_attention_changes_no_bit(attention: str) -> None:
    case = PIPELINES["pixart-sigma"]
    pipe = case.build()
    pipe.text_encoder.set_attn_implementation(attention)
    (text_encoder,) = encoders_of(case, pipe, 24)
    for texts in ([PROMPT, "", "ab cd " * 90], ["ab cd " * 90]):  # with padding, and without any
        ids = text_encoder.ids(texts)
        with torch.no_grad():
            expected = pipe.text_encoder(ids, attention_mask=text_encoder.attended(ids).long())[0]
            assert torch.equal(text_encoder.states(ids)[0], expected.float())


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_text_encoders_follow_clip_skip(name: str) -> None:
    case, spy = PIPELINES[name], Spy()
    pipe = case.build()
    if name == "sd":  # diffusers looks for the norm where older releases of transformers have it
        norm = pipe.text_encoder.final_layer_norm
        pipe.text_encoder.__dict__["text_model"] = SimpleNamespace(final_layer_norm=norm)
    with sr.attach(pipe, spy):
        run(case, pipe, PROMPT, clip_skip=1)
    step = spy.steps[0]
    for text_encoder in step.run.text_encoders:
        states, _ = text_encoder.states(text_encoder.ids([PROMPT]))
        torch.testing.assert_close(
            states, step.prompt_embeds[:, text_encoder.tokens, text_encoder.channels], rtol=1e-5, atol=1e-5
        )


def test_words_of_a_text() -> None:
    pipe = make_sdxl()
    pipe.tokenizer_2.pad_token = "a"  # SDXL's second tokenizer pads with a word, the one that also masks
    for text_encoder in make_text_encoders(pipe, FAMILIES["stable-diffusion-xl"], 77):
        ids = text_encoder.ids(["b c", "", "b<|endoftext|>c", "b " * 100])
        assert text_encoder.words(ids).sum(1).tolist() == [2, 0, 3, 75]  # a closing token typed by the user is a word
        assert text_encoder.attended(ids).sum(1).tolist() == [4, 2, 5, 77]
        ids[0, 2] = text_encoder.mask_id
        assert text_encoder.attended(ids).sum(1).tolist() == [4, 2, 5, 77]  # masking the last word moves no end
        cut = text_encoder.ids(["b " * 100], keep_end=False)
        assert cut.shape == (1, 77) and cut[0, -1] != text_encoder.tokenizer.eos_token_id
        states, pooled = text_encoder.states(cut)
        assert torch.equal(pooled[0], states[0, int(cut.argmax())])


@pytest.mark.parametrize("name", CASES)
def test_rows_of_a_call_have_the_texts_of_their_prompts(name: str) -> None:
    case, spy = PIPELINES[name], Spy()
    pipe = case.build()
    with sr.attach(pipe, spy):
        run(case, pipe, [PROMPT, "c"], num_images_per_prompt=2)
        assert "encode_prompt" in pipe.__dict__
        run(case, pipe, "")
    assert spy.steps[0].prompts == (PROMPT, PROMPT, "c", "c") and spy.steps[-1].prompts == ("",)
    assert (
        len(spy.runs[0].text_encoders) == len(FAMILIES[case.family].text_encoder_facts)
        and "encode_prompt" not in pipe.__dict__
    )
    assert PROMPT not in repr(spy.steps[0])


def test_what_is_not_certain_is_unknown() -> None:
    case, spy = PIPELINES["sdxl"], Spy()
    pipe = case.build()
    before = pipe.encode_prompt("c d", do_classifier_free_guidance=False)
    given = {"prompt_embeds": before[0].detach(), "pooled_prompt_embeds": before[2].detach()}
    with sr.attach(pipe, spy):
        run(case, pipe, [PROMPT, "c"], prompt_2=[PROMPT, "d"])
        run(case, pipe, None, **{**given, **case.unguided})
        pipe.encode_prompt(
            "e f", prompt_embeds=given["prompt_embeds"], pooled_prompt_embeds=given["pooled_prompt_embeds"]
        )
        run(case, pipe, None, **{**given, **case.unguided})
    runs = {id(step.run): step.prompts for step in spy.steps}
    assert list(runs.values()) == [(PROMPT, None), (None,), (None,)]


def test_texts_and_hooks_are_taken_off_and_do_not_live_on_in_copies() -> None:
    pipe = make_sd()
    bare = generate(pipe, PROMPT)
    first, second = sr.attach(pipe, safree(**ACTING, lra="paper")), sr.attach(pipe, Spy())
    guarded = generate(pipe, PROMPT)
    clone, other = copy.deepcopy(pipe), copy.deepcopy(pipe)
    with pytest.raises(sr.GuardError, match="copy"):
        generate(clone, PROMPT)
    detach(clone)
    with sr.attach(other, safree(**ACTING, lra="paper")):
        assert torch.equal(generate(other, PROMPT), guarded)
    first.detach()
    assert "encode_prompt" in pipe.__dict__ and not any(block._forward_pre_hooks for block in pipe.unet.up_blocks)
    second.detach()
    for one in (pipe, clone, other):
        assert "encode_prompt" not in one.__dict__ and torch.equal(generate(one, PROMPT), bare)
        assert not any(block._forward_pre_hooks for block in one.unet.up_blocks)


# --- the guard


def test_config_says_what_it_wants() -> None:
    for wrong in (
        {"mode": "x"},
        {"svf": "on"},
        {"margin": -2.0},
        {"margin": math.nan},
        {"margin": math.inf},
        {"phrases": ("",)},
        {"lra_factors": (2, 0)},
    ):
        with pytest.raises(sr.GuardConfigError, match=next(iter(wrong))):
            safree(**wrong)
    with pytest.raises(sr.GuardConfigError, match="never runs"):
        safree(mode="faithful", lra="paper")
    assert SafreeConfig(concept="moon").texts == ("moon",)


def test_saved_and_loaded(tmp_path: Path) -> None:
    guard = safree(margin=None, lra="paper", svf="paper")
    guard.save_pretrained(tmp_path / "one")
    loaded = Guard.from_pretrained(tmp_path / "one")
    assert isinstance(loaded, Safree) and loaded.config == guard.config


@by_case
def test_every_pipeline_is_filtered_or_refused(case: PipelineCase) -> None:
    pipe = case.build()
    bare = run(case, pipe, PROMPT)
    with sr.attach(pipe, safree(**ACTING)) as attached:
        if not FAMILIES[case.family].text_encoder_facts:
            with pytest.raises(sr.GuardError, match="needs CLIP or T5 text encoders"):
                run(case, pipe, PROMPT)
            return
        images = run(case, pipe, PROMPT)
    decision = attached.decisions[0]
    assert decision.fired and decision.first_fired_step == 0 and images.isfinite().all()
    assert not close(images, bare, 1e-3)
    with sr.attach(pipe, safree(margin=None, negative=False)) as attached:
        assert torch.equal(run(case, pipe, PROMPT), bare)
    assert not attached.decisions[0].fired


@pytest.mark.parametrize("name", CASES)
def test_a_batch_equals_single_runs(name: str) -> None:
    case = PIPELINES[name]
    pipe, prompts = case.build(), [PROMPT, "q"]
    for settings in ({"margin": 0.0, "svf": "paper"}, ACTING):
        with sr.attach(pipe, safree(**settings)) as attached:
            batch, decisions = run(case, pipe, prompts), attached.decisions
            singles = [run(case, pipe, prompt, seeds=[seed]) for seed, prompt in enumerate(prompts)]
        torch.testing.assert_close(batch, torch.cat(singles), rtol=1e-3, atol=1e-3)
        assert [decision.image for decision in decisions] == [0, 1]


def conditioning(pipe: Any, guard: Guard[Any], prompt: Any = PROMPT, **settings: Any) -> tuple[list[Step], list[Any]]:
    """(steps as a later guard sees them, decisions)."""
    spy = Spy()
    with sr.attach(pipe, [guard, spy]) as attached:
        generate(pipe, prompt, **settings)
        decisions = attached.decisions
    return spy.steps, decisions[: len(decisions) // 2]


def test_only_triggers_move_and_only_in_the_first_steps() -> None:
    pipe, own = make_pipeline(), Spy()
    with sr.attach(pipe, own):
        generate(pipe, PROMPT, num_inference_steps=50)
    original = own.steps[0].prompt_embeds
    steps, decisions = conditioning(pipe, safree(margin=0.0, svf="paper"), num_inference_steps=50)
    moved = [(step.prompt_embeds != original).any(-1)[0].nonzero().flatten().tolist() for step in steps]
    count = decisions[0].steps_redirected
    assert 6 <= count <= 10 and decisions[0].action == "redirected" and decisions[0].prompt_score > 0
    text_encoder = own.runs[0].text_encoders[0]
    words = text_encoder.words(text_encoder.ids([PROMPT]))[0].nonzero().flatten().tolist()
    assert moved[0] and set(moved[0]) < set(words)  # some words; not the opening, closing and padding tokens
    assert moved == [moved[0]] * count + [[]] * (50 - count)
    assert all(step.prompt_embeds is steps[-1].prompt_embeds for step in steps[count:])
    with_end, _ = conditioning(pipe, safree(margin=0.0, svf="paper", filter_eos=True))
    also = (with_end[0].prompt_embeds != original).any(-1)[0].nonzero().flatten().tolist()
    assert set(also) == set(moved[0]) | set(range(words[-1] + 1, 77))


def test_filtered_tokens_hold_nothing_of_the_concept() -> None:
    steps, _ = conditioning(make_pipeline(), safree(**ACTING))
    text_encoder = steps[0].run.text_encoders[0]
    concept = basis(text_encoder.states(text_encoder.ids(PHRASES))[1], 1e-3)
    words = text_encoder.words(text_encoder.ids([PROMPT]))
    new = steps[0].prompt_embeds[words]
    assert onto(new, concept).norm() <= 1e-4 * new.norm()
    assert steps[0].negative_prompt_embeds is not None
    joined = steps[0].run.encode([", ".join(PHRASES)]).prompt
    assert torch.equal(steps[0].negative_prompt_embeds, joined)


def test_an_empty_prompt_is_skipped_and_the_longest_is_not() -> None:
    pipe = make_pipeline()
    bare = generate(pipe, "")
    with sr.attach(pipe, safree(margin=-1.0, svf="off", negative=False)) as attached:
        assert torch.equal(generate(pipe, ""), bare)
        assert not attached.decisions[0].fired
        generate(pipe, "a b c d e " * 30)
        assert attached.decisions[0].fired


def test_unknown_texts_are_filtered_whole_or_refused() -> None:
    pipe = make_pipeline()
    embeds = encode_prompts(pipe, [PROMPT]).prompt.detach()
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": torch.zeros_like(embeds)}
    steps, decisions = conditioning(pipe, safree(), prompt=None, **given)
    moved = (steps[-1].prompt_embeds != embeds).any(-1)[0]
    assert not moved[0] and moved[1:].all() and decisions[0].steps_redirected == 3
    with sr.attach(pipe, safree(unknown_text="raise")), pytest.raises(sr.GuardError, match="does not know the prompt"):
        generate(pipe, None, **given)
    longer = torch.cat([embeds, embeds], dim=1)
    with sr.attach(pipe, safree()), pytest.raises(sr.GuardError, match="cannot filter all"):
        generate(pipe, None, prompt_embeds=longer, negative_prompt_embeds=torch.zeros_like(longer))


def test_a_missing_text_encoder_fails_closed() -> None:
    case = PIPELINES["sd3"]
    pipe = case.build()
    made = [
        part.detach() for part in pipe.encode_prompt(PROMPT, PROMPT, PROMPT, do_classifier_free_guidance=False)[::2]
    ]
    given = {"prompt_embeds": made[0], "pooled_prompt_embeds": made[1], **case.unguided}
    pipe.text_encoder_3 = None
    with sr.attach(pipe, safree(**ACTING)) as attached:
        run(case, pipe, PROMPT)  # without T5 its part is zero
        assert attached.decisions[0].fired
        with pytest.raises(sr.GuardError, match="text encoder is missing"):
            run(case, pipe, None, **given)


def test_a_retry_filters_all_steps_and_then_all_tokens() -> None:
    pipe, guard, spy = make_pipeline(), safree(margin=0.0), Spy()
    with sr.attach(pipe, [guard, spy]) as attached:
        moved = []
        for level in (0, 1, 2):
            attached.retry_level = (level,)
            spy.steps.clear()
            generate(pipe, PROMPT)
            last = spy.steps[-1]
            moved.append(int((last.prompt_embeds != last.run.encode([PROMPT]).prompt).any(-1).sum()))
            assert level == 0 or attached.decisions[0].steps_redirected == 3
    words = len(PROMPT.replace(" ", ""))
    assert moved[0] == 0 < moved[1] < moved[2] == words


def test_flux_projects_its_pooled_vector_as_well() -> None:
    case, spy = PIPELINES["flux"], Spy()
    pipe = case.build()
    with sr.attach(pipe, [safree(**ACTING), spy]):
        run(case, pipe, PROMPT)
    step = spy.steps[0]
    text_encoder = step.run.text_encoders[0]
    concept = basis(text_encoder.states(text_encoder.ids(PHRASES))[1], 1e-3)
    own = step.run.encode([PROMPT]).pooled
    assert step.pooled is not None and own is not None and text_encoder.tokens is None
    torch.testing.assert_close(step.pooled, away(own, concept))


def test_the_negative_prompt_works_alone_too() -> None:
    pipe = make_pipeline()
    with sr.attach(pipe, safree(margin=None)) as attached:
        found = generate(pipe, PROMPT)
    assert close(found, generate(pipe, PROMPT, negative_prompt=", ".join(PHRASES)))
    assert not attached.decisions[0].fired and "negative prompt only" in attached.decisions[0].message


def test_faithful_is_the_authors_code() -> None:
    pipe = make_pipeline()
    weak = {"mode": "faithful", "margin": -1.0}
    _, faithful = conditioning(pipe, safree(**weak), num_inference_steps=20)
    score = faithful[0].prompt_score
    assert score is not None and faithful[0].steps_redirected == min(
        20, int(last_step(torch.tensor(score), "general")) + 1
    )
    long = "a b c d e " * 30
    one, _ = conditioning(pipe, safree(mode="faithful", margin=0.0, svf="off"), prompt=long)
    other, _ = conditioning(pipe, safree(margin=0.0, svf="off"), prompt=long)
    assert not torch.equal(one[0].prompt_embeds, other[0].prompt_embeds)  # masked copies without a closing token
    case = PIPELINES["sdxl"]
    pipe = case.build()
    with sr.attach(pipe, safree(mode="faithful")), pytest.raises(sr.GuardError, match="one CLIP text encoder"):
        run(case, pipe, PROMPT)


@pytest.mark.parametrize("lra", ["off", "paper"])
def test_gradients_reach_the_prompt_embeddings(lra: str) -> None:
    pipe = make_pipeline()
    embeds = encode_prompts(pipe, [PROMPT]).prompt.detach().requires_grad_()
    with torch.enable_grad(), sr.attach(pipe, safree(lra=lra)):
        latents = type(pipe).__call__.__wrapped__(  # type: ignore[attr-defined]
            pipe, None, prompt_embeds=embeds, negative_prompt_embeds=torch.zeros_like(embeds), num_inference_steps=2,
            output_type="latent", generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip
        latents.square().sum().backward()
    assert embeds.grad is not None and embeds.grad.isfinite().all() and embeds.grad.abs().sum() > 0


def test_bfloat16_and_two_guards_of_one_pipeline() -> None:
    pipe = make_pipeline(dtype=torch.bfloat16)
    with sr.attach(pipe, safree(**ACTING, lra="paper")) as attached:
        found = generate(pipe, PROMPT)
        with pytest.raises(sr.GuardError, match="both replace"):
            sr.attach(pipe, safree())
    assert found.dtype == torch.bfloat16 and attached.decisions[0].fired


class Mover(Guard[GuardConfig]):
    """Edits all prompts before SAFREE sees them."""

    method = "mover"

    def on_prompt(self, step: Step) -> Conditioning:
        return step.conditioning.with_cond(prompt=0.5 * step.prompt_embeds)


def test_a_guard_before_it_is_taken_along() -> None:
    pipe = make_pipeline()
    alone, _ = conditioning(pipe, safree(**ACTING))
    with sr.attach(pipe, Mover(GuardConfig(concept="x"))):
        after, _ = conditioning(pipe, safree(**ACTING))
    torch.testing.assert_close(after[0].prompt_embeds, 0.5 * alone[0].prompt_embeds, rtol=1e-4, atol=1e-4)
