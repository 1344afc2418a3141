"""Anchors of a policy's rules: an image that a guard acts on is that of the anchor's prompt, and others are untouched."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract.guards import GUARDS, PROMPT, make_saferedir, make_saferedir_many, shared_pipeline
from tests.tiny_pipelines import run
from tests.tiny_variants import ALL_CASES

import saferedir as sr
from saferedir.attacks.run import guard_facts
from saferedir.bench.generation.resources import guards_digest
from saferedir.errors import GuardConfigError, GuardError, UnsupportedPipelineError
from saferedir.guards.registry import guard_class
from saferedir.guards.saferedir.anchors import Anchors
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.guard import SafeRedir
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.denoiser_call import Call
from saferedir.pipelines.encoding import encode_prompts
from saferedir.pipelines.families import FAMILIES, family_of
from saferedir.policy.conflicts import anchor_conflicts, named_conflicts
from saferedir.policy.loading import guards_of
from saferedir.protect import prompt_decisions
from saferedir.seam.anchors import whole_anchor_refusal
from saferedir.seam.requirements import missing_text_encoders
from saferedir.server.engine.fingerprints import guard_fingerprint
from saferedir.utils.device import rehearsal

ANCHOR = "the moon"
#: text encoders with and without pooled embeddings, masks, lengths that are the prompt's own, and zeros for padding
CASES = ("sd", "sdxl", "sd3", "flux-true-cfg", "wan")
MASKED = ("pixart-sigma", "lumina2")


def guard_on(make: Any, name: str) -> Any:
    return make(shared_pipeline(name), ALL_CASES[name]).with_anchors(ANCHOR)


@contextmanager
def acting(pipe: Any, guard: Any) -> Iterator[sr.Attached]:
    """Attached with prompt thresholds above every score, as an anchor on which its guard acts is refused, then without."""
    config = guard.config
    name = next(name for name in ("prompt_threshold", "prompt_thresholds") if hasattr(config, name))
    low = getattr(config, name)
    guard.config = dataclasses.replace(config, **{name: tuple(1e3 for _ in low) if isinstance(low, tuple) else 1e3})
    with sr.attach(pipe, guard) as attached:
        guard.config = config
        yield attached


@pytest.mark.parametrize("make", [make_saferedir, make_saferedir_many])
@pytest.mark.parametrize("name", CASES)
def test_an_image_that_is_acted_on_is_that_of_the_anchor(make: Any, name: str) -> None:
    case, pipe, prompts = ALL_CASES[name], shared_pipeline(name), [PROMPT, "a cat"]
    settings = {"max_sequence_length": 512} if name.startswith("flux") else {}  # the pipeline's own, unlike the case's
    wanted = run(case, pipe, [ANCHOR] * 2, **settings)
    guard = guard_on(make, name)
    with acting(pipe, guard) as attached:
        images = run(case, pipe, prompts, **settings)
        decisions = attached.decisions
        with rehearsal():  # nothing that the host would wait for changes anything
            assert torch.equal(run(case, pipe, prompts, **settings), images)
    assert torch.equal(images, wanted) or name != "sd"
    torch.testing.assert_close(
        images, wanted, rtol=1e-3, atol=1e-3
    )  # pooled embeddings round otherwise in another batch
    assert {d.action for d in decisions} == {"redirected"} and all(d.fired for d in decisions)


@pytest.mark.parametrize("prompt", [PROMPT, "a cat sits on a red mat", "o"])
@pytest.mark.parametrize("name", MASKED)
def test_under_a_mask_the_denoiser_is_given_the_anchors_tokens_in_the_place_of_the_prompts_own(
    name: str, prompt: str
) -> None:
    case, pipe = ALL_CASES[name], shared_pipeline(name)
    family, calls = family_of(pipe), []
    with acting(pipe, guard_on(make_saferedir, name)), torch.no_grad():
        hook = getattr(pipe, family.denoiser).register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(Call(family, args, kwargs).embeds), with_kwargs=True
        )
        run(case, pipe, prompt, steps=1, **case.unguided)
        hook.remove()
        anchor = encode_prompts(pipe, [ANCHOR])
    (given,) = calls
    assert given.mask is not None and anchor.mask is not None
    tokens, wanted = given.prompt[0][given.mask[0].bool()], anchor.prompt[0][anchor.mask[0].bool()]
    missing = max(0, len(tokens) - len(wanted))
    assert torch.equal(tokens, torch.cat([wanted, wanted[-1:].expand(missing, -1)])[: len(tokens)])


def test_whoever_differentiates_gets_the_gradient_through_the_gate() -> None:
    pipe, case = shared_pipeline("sd"), ALL_CASES["sd"]
    soft = guard_on(make_saferedir, "sd").differentiable()
    with acting(pipe, soft):
        images = run(case, pipe, PROMPT)
    torch.testing.assert_close(images, run(case, pipe, ANCHOR), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        given = encode_prompts(pipe, [PROMPT])
        threshold = float(soft.prompt_gates(given)["star"].score) - 0.1  # where the gate's derivative is no zero
    soft.config = dataclasses.replace(soft.config, prompt_threshold=threshold)
    embeds = given.prompt.clone().requires_grad_()
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with acting(pipe, soft):
        images = type(pipe).__call__.__wrapped__(  # type: ignore[attr-defined]
            pipe, prompt_embeds=embeds, negative_prompt_embeds=torch.zeros_like(given.prompt), latents=latents,
            num_inference_steps=2, output_type="latent",
        ).images  # fmt: skip
        images.square().sum().backward()
    assert embeds.grad is not None and embeds.grad.isfinite().all() and embeds.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["cogview-4", "hunyuan-dit"])
def test_where_an_anchor_would_not_arrive_whole_it_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedPipelineError, match="does not arrive whole there; leave out anchor"):
        sr.attach(shared_pipeline(name), guard_on(make_saferedir, name))
    refused = {name for name, family in FAMILIES.items() if whole_anchor_refusal(family)}
    assert refused == {"cogview-4", "kandinsky-5", "kandinsky-5-edit", "kandinsky-5-video", "hunyuan-dit"}


def test_zeros_that_make_anchors_equally_long_are_no_tokens_of_theirs() -> None:
    prompt = torch.tensor([[[1.0], [2.0], [0.0]], [[3.0], [4.0], [5.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert Anchors.of(PromptEmbeds(prompt, None, mask)).prompt[0, :, 0].tolist() == [1, 2, 2]
    assert Anchors.of(PromptEmbeds(prompt)).prompt[0, :, 0].tolist() == [1, 2, 0]  # Wan's, which are read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guard of two concepts, each of which acts on one of the prompts below."""
    guard = make_saferedir_many(shared_pipeline("sd"), ALL_CASES["sd"])
    config = guard.config.to_dict()
    with sr.attach(shared_pipeline("sd"), guard.deciding({"star": "star", "ring": "ring"})) as attached:
        run(ALL_CASES["sd"], shared_pipeline("sd"), ["a x", "b o"])
        scores = {(d.name, d.image): d.prompt_score for d in attached.decisions}
    limits = tuple((scores[name, 0] + scores[name, 1]) / 2 for name in ("star", "ring"))
    settings = {**config, "prompt_thresholds": limits, "image_thresholds": (1e3, 1e3)}
    made = type(guard)(type(guard.config).from_dict(settings), guard.network)
    return made.save_pretrained(tmp_path_factory.mktemp("guards") / "two")


def policy(folder: Path, **rules: dict[str, Any]) -> sr.Policy:
    concepts = {name: {"guard": str(folder), "row": name, **rule} for name, rule in rules.items()}
    return sr.Policy.from_dict({"name": "p", "version": 1, "concepts": concepts})


def guarded(rules: sr.Policy) -> tuple[torch.Tensor, list[Any]]:
    with sr.protect(shared_pipeline("sd"), policy=rules) as safe:
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        call = {**ALL_CASES["sd"].settings, **ALL_CASES["sd"].guidance, "num_inference_steps": 3}
        output = safe(["a x", "b o"], generator=generators, output_type="latent", **call)
    return output.images, output.decisions


@pytest.mark.filterwarnings("ignore")
def test_each_row_leads_to_its_own_anchor_and_one_without_is_as_before(folder: Path) -> None:
    case, pipe = ALL_CASES["sd"], shared_pipeline("sd")
    bare, moon, dog = (run(case, pipe, prompts) for prompts in (["a x", "b o"], [ANCHOR] * 2, ["a dog"] * 2))
    plain, decisions = guarded(policy(folder, star={}, ring={}))
    acted = {d.name: [e.image for e in decisions if e.name == d.name and e.fired] for d in decisions}
    images, _ = guarded(policy(folder, star={"anchor": ANCHOR}, ring={}))
    both, _ = guarded(policy(folder, star={"anchor": ANCHOR}, ring={"anchor": "a dog"}))
    logged, _ = guarded(policy(folder, star={"anchor": ANCHOR, "action": "log"}, ring={"anchor": "a dog"}))
    assert acted["star"] and acted["ring"]
    for image in range(2):
        of_star, of_ring = image in acted["star"], image in acted["ring"]
        assert torch.equal(images[image], moon[image] if of_star else plain[image])
        assert torch.equal(both[image], (moon if of_star else dog if of_ring else bare)[image])
        assert torch.equal(logged[image], (dog if of_ring else bare)[image])


def test_a_guard_of_one_concept_takes_its_rules_anchor_and_checksums_know_it() -> None:
    rule = {"guard": "pictoworld/star", "anchor": "a red heart on sand"}
    rules = sr.Policy.from_dict({"name": "p", "version": 1, "concepts": {"star": rule}})
    assert sr.Policy.from_dict(rules.to_dict()) == rules and rules.to_dict()["concepts"]["star"]["anchor"]
    (guard,), _ = guards_of(rules, None)
    assert guard.anchor_prompts == {"star": "a red heart on sand"}
    plain = sr.Guard.from_pretrained("pictoworld/star")
    plain.name = guard.name
    for digest in (guard_facts, guard_fingerprint, lambda each: guards_digest([each])):
        assert digest(guard) != digest(plain)
    pipe = sr.load_pipeline("pictoworld")
    call: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0, "output_type": "latent"}
    prompts = ["a blue star on grass", "a green ring on snow"]

    def noise() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(2)]

    wanted = pipe(["a red heart on sand", prompts[1]], generator=noise(), **call).images
    with sr.attach(pipe, guard):
        assert torch.equal(pipe(prompts, generator=noise(), **call).images, wanted)
    assert isinstance(guard, SafeRedir)
    again = guard.with_settings(recheck="same_step")
    with sr.attach(pipe, again):
        assert torch.equal(pipe(prompts, generator=noise(), **call).images, wanted)


@pytest.mark.parametrize("method", [name for name, row in GUARDS.items() if row.is_method])
def test_guards_without_an_anchor_refuse_one_in_a_sentence(method: str) -> None:
    kind = guard_class(method)
    if kind.with_anchors is not sr.Guard.with_anchors:
        return
    guard = object.__new__(kind)
    guard.config = GUARDS["watcher"].make(None, ALL_CASES["sd"]).config
    with pytest.raises(GuardConfigError, match="redirects to no prompt"):
        guard.with_anchors(ANCHOR)


def test_a_policy_says_which_rule_has_an_anchor_that_its_guard_cannot_take() -> None:
    rules = {"star": {"guard": "pictoworld/star-duo", "anchor": ANCHOR}}
    with pytest.raises(GuardConfigError, match=r"\[concepts.star\] has an anchor, but guard 'duo'"):
        guards_of(sr.Policy.from_dict({"name": "p", "version": 1, "concepts": rules}), None)
    tables = {"logos": {"anchor": ANCHOR}}
    of_category = {"s2": {"guard": "pictoworld/star-duo", "category": "logos"}}
    with pytest.raises(GuardConfigError, match=r"of its category 'logos', but .* say anchor = \"\" in \[concepts.s2\]"):
        guards_of(sr.Policy.from_dict({"name": "p", "version": 1, "concepts": of_category, "categories": tables}), None)
    of_category["s2"]["anchor"] = ""
    guards_of(sr.Policy.from_dict({"name": "p", "version": 1, "concepts": of_category, "categories": tables}), None)
    with pytest.raises(GuardConfigError, match="anchor"):
        sr.Policy.from_dict({"name": "p", "version": 1, "concepts": {"star": {"guard": "g", "anchor": " "}}})
    faithful = SafeRedir(SafeRedirConfig(concept="star", mode="faithful"))
    with pytest.raises(GuardConfigError, match="which has no anchor"):
        faithful.with_anchors(ANCHOR)
    with pytest.raises(GuardConfigError, match="there is no concept"):
        sr.Guard.from_pretrained("pictoworld/values").with_anchors({"shape-fox": ANCHOR})


def test_anchors_that_were_not_encoded_generate_nothing() -> None:
    case = ALL_CASES["sd"]
    for make in (make_saferedir, make_saferedir_many):
        guard = guard_on(make, "sd")
        with acting(shared_pipeline("sd"), guard):
            guard._anchors = None
            with pytest.raises(GuardError, match="anchors were not encoded"):
                run(case, shared_pipeline("sd"), PROMPT)
    pipe = case.build()
    pipe.text_encoder = None
    assert missing_text_encoders(pipe, family_of(pipe))
    with pytest.raises(GuardError, match=r"has no text_encoder.*; attach before you drop the text encoders"):
        sr.attach(pipe, guard_on(make_saferedir, "sd"))


@pytest.mark.parametrize(
    ("guard", "row", "anchor"),
    [
        ("pictoworld/star", "", "stars"),
        ("pictoworld/star", "", "a red pentagram"),
        ("pictoworld/values", "shape-star", "a red star on sand"),
    ],
)
def test_an_anchor_that_asks_for_its_own_concept_is_refused(guard: str, row: str, anchor: str) -> None:
    rule = {"guard": guard, "anchor": anchor, **({"row": row} if row else {})}
    rules = sr.Policy.from_dict({"name": "p", "version": 1, "concepts": {"my-star": rule}})
    pipe = sr.load_pipeline("pictoworld")
    with pytest.raises(GuardError, match=rf"'my-star' would be redirected to '{anchor}', .* \(score .*, threshold "):
        sr.protect(pipe, policy=rules)
    assert not pipe.unet._forward_hooks
    sr.protect(pipe, policy=logged(rules)).detach()


def logged(rules: sr.Policy) -> sr.Policy:
    concepts = {name: {**rule, "action": "log"} for name, rule in rules.to_dict()["concepts"].items()}
    return sr.Policy.from_dict({**rules.to_dict(), "concepts": concepts})


@pytest.mark.filterwarnings("ignore")
def test_an_anchor_that_another_attached_guard_keeps_out_is_refused_in_either_order() -> None:
    pipe = sr.load_pipeline("pictoworld")
    star = sr.Guard.from_pretrained("pictoworld/star").with_anchors("a red heart in pointillism on white")
    dots = sr.Guard.from_pretrained("pictoworld/pointillism")
    for order in ((star, dots), (dots, star)):
        with pytest.raises(GuardError, match="asks for 'pictoworld/pointillism'"):
            sr.attach(pipe, order)
        with sr.attach(pipe, order[0]), pytest.raises(GuardError, match="asks for 'pictoworld/pointillism'"):
            sr.attach(pipe, order[1])
    rows = {"shape-heart": "heart", "shape-ring": "ring"}
    whole: Any = sr.Guard.from_pretrained("pictoworld/values")
    values = whole.deciding(rows).with_anchors({"shape-ring": "a red heart on sand"})
    with pytest.raises(GuardError, match="'ring' would be redirected to 'a red heart on sand', which asks for 'heart'"):
        sr.attach(pipe, values)
    sr.attach(pipe, values.deciding({"shape-ring": "ring"})).detach()


def test_a_guard_is_not_saved_with_an_anchor_that_its_folder_would_not_hold(tmp_path: Path) -> None:
    for name in ("pictoworld/star", "pictoworld/values"):
        guard = sr.Guard.from_pretrained(name).with_anchors("a red heart")
        for save in (guard.save_pretrained, guard.push_to_hub):
            with pytest.raises(
                GuardConfigError, match="'a red heart', and an anchor is the policy's; save the guard without it"
            ):
                save(str(tmp_path / "guard"))
        assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("guard", "more", "retries", "runs"),
    [
        ("pictoworld/star", {"anchor": "a red heart on sand"}, 2, 1),
        ("pictoworld/values", {"row": "shape-star", "anchor": "a red heart on sand"}, 2, 1),
        ("pictoworld/star", {}, 4, 3),  # the guard's own anchor is the third try
        ("pictoworld/values", {"row": "shape-star"}, 2, 3),
    ],
)
def test_an_image_is_not_generated_again_as_it_was(guard: str, more: dict[str, str], retries: int, runs: int) -> None:
    rules = sr.Policy.from_dict(
        {"name": "p", "version": 1, "concepts": {"star": {"guard": guard, "action": "verify", **more}}}
    )
    pipe = sr.load_pipeline("pictoworld")
    with sr.protect(pipe, policy=rules, retries=retries, verify=lambda images: [True] * len(images)) as safe:
        output = safe(
            "a red star on sand", generator=torch.Generator().manual_seed(0), num_inference_steps=4, guidance_scale=4.0
        )
        assert safe._attached.runs == runs and output.blocked == [True]
    assert output.decisions[0].attempts == runs


def test_conflicts_are_those_of_the_anchors_that_the_rules_give() -> None:
    def rules(star: str, crescent: str) -> sr.Policy:
        rows = {"star": ("shape-star", star), "crescent": ("shape-crescent", crescent)}
        concepts = {
            name: {"guard": "pictoworld/values", "row": row, **({"anchor": anchor} if anchor else {})}
            for name, (row, anchor) in rows.items()
        }
        return sr.Policy.from_dict({"name": "p", "version": 1, "concepts": concepts})

    def named(*anchors: str) -> list[tuple[str, str]]:
        return [(each.concept, each.other) for each in named_conflicts(*guards_of(rules(*anchors), None))]

    both = [("star", "crescent"), ("crescent", "star")]
    assert named("", "") == both
    assert named("a red circle", "") == both[1:] and named("a red circle", "a red heart") == []
    assert named("a red Crescent", "a heart") == both[:1]
    assert named("a red star", "a heart") == [("star", "star")]
    decide = partial(prompt_decisions, sr.load_pipeline("pictoworld"))
    calls: list[int] = []

    def counted(guard: Any, texts: list[str]) -> Any:
        calls.append(len(texts))
        return decide(guard, texts)

    measured = anchor_conflicts(counted, *guards_of(rules("a red circle on grass", "a red heart on sand"), None))
    assert measured == [] and calls == [2]  # one guard is asked once, whatever the number of its rules
    forbidden = anchor_conflicts(counted, *guards_of(rules("a red star on sand", "a blue crescent on snow"), None))
    assert {(each.concept, each.other) for each in forbidden} == {("star", "star"), ("crescent", "crescent")}


def test_anchors_of_many_guards_are_encoded_together_to_be_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all guards of the same call, and once for each that takes its own: nothing that grows with their pairs."""
    asked: list[int] = []

    def counted(pipe: Any, texts: Any, call: Any = None) -> Any:
        asked.append(len(texts))
        return encode_prompts(pipe, texts, call)

    monkeypatch.setattr("saferedir.seam.anchors.encode_prompts", counted)
    anchors = {"star": "a red heart on sand", "emblem": "a blue ring on snow", "pointillism": "a green square"}
    guards = [sr.Guard.from_pretrained(f"pictoworld/{name}").with_anchors(text) for name, text in anchors.items()]
    with sr.attach(sr.load_pipeline("pictoworld"), guards):
        assert asked == [3, 1, 1, 1]
