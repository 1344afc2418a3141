"""Rules for the concepts inside one guard of many, concepts that are off, and allowed prompts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import make_pipeline

import saferedir as sr
from saferedir.attacks.run import guard_facts
from saferedir.bench.generation.resources import guards_digest
from saferedir.errors import GuardConfigError, GuardError
from saferedir.guards.saferedir.network import Redirector, RedirectorConfig
from saferedir.guards.saferedir_many import SafeRedirMany, SafeRedirManyConfig
from saferedir.pipelines.encoding import encode_prompts
from saferedir.policy.allow_list import allowed_images, normalised
from saferedir.policy.loading import guards_of
from saferedir.server.engine.fingerprints import guard_fingerprint

CONCEPTS = ("star", "ring", "fox")
PROMPTS = ["a x", "b o", "c k"]
CALL: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return make_pipeline()


@pytest.fixture(scope="module")
def folder(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guard of which each concept acts on the one of the prompts that has its highest score."""
    config = RedirectorConfig(
        prompt_dim=pipe.unet.config.cross_attention_dim, width=16, heads=2, hidden=16, latent_widths=(8, 8),
        latent_strides=(1, 2), rank=8, t_dim=8, concepts=CONCEPTS, row_heads=True, has_joint=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Redirector(config).eval().requires_grad_(False)
    network.heads.prompt_score.weight.mul_(20)  # type: ignore[operator]
    network.half().float()
    with torch.no_grad():
        logits = network.prompt_logits(encode_prompts(pipe, PROMPTS).prompt)
    limits = tuple(logits.sort(dim=0).values[1:].mean(dim=0).tolist())
    settings = SafeRedirManyConfig(
        concept="many",
        network=config.to_dict(),
        prompt_thresholds=limits,
        image_thresholds=(1e3,) * 3,
    )
    return SafeRedirMany(settings, network).save_pretrained(tmp_path_factory.mktemp("guards") / "many")


def policy(folder: Path, **actions: str) -> sr.Policy:
    rules = {f"{row} of us": {"guard": str(folder), "row": row, "action": action} for row, action in actions.items()}
    return sr.Policy.from_dict({"name": "p", "version": 1, "concepts": rules})


def run(pipe: Any, rules: Any = None, **more: Any) -> Any:
    call = {**CALL, "generator": [torch.Generator().manual_seed(seed) for seed in range(3)], **more}
    if rules is None:
        return pipe(PROMPTS, **call)
    with sr.protect(pipe, policy=rules) as safe:
        return safe(PROMPTS, **call)


def acted_on(pipe: Any, folder: Path) -> dict[str, int]:
    """Concept -> the image it acts on."""
    output = run(pipe, policy(folder, star="redirect", ring="redirect", fox="redirect"))
    assert len(output.decisions) == 9
    return {d.concept: d.image for d in output.decisions if d.fired}


def test_each_row_has_its_own_action_and_decisions_name_it(pipe: Any, folder: Path) -> None:
    images, bare = acted_on(pipe, folder), run(pipe).images
    assert set(images) == set(CONCEPTS)
    rules = policy(folder, fox="log", star="block", ring="redirect")
    output = run(pipe, rules)
    names = [(d.name, d.concept, d.image) for d in output.decisions]
    assert names == [(f"{row} of us", row, image) for row in ("fox", "star", "ring") for image in range(3)]
    assert all(d.fired == (images[d.concept] == d.image) for d in output.decisions)
    assert output.blocked == [image == images["star"] for image in range(3)]
    assert output.blocked_by[images["star"]] == ("star of us",)
    for image in range(3):
        is_changed = image in (images["ring"], images["star"])
        assert (output.images[image] == bare[image]).all() == (not is_changed)
    logged = next(d for d in output.decisions if d.concept == "fox" and d.fired)
    assert logged.action == "none" and logged.message.startswith("Logged only.")


def test_rows_that_are_logged_alone_change_no_bit_and_rows_without_a_rule_are_off(pipe: Any, folder: Path) -> None:
    bare = run(pipe).images
    output = run(pipe, policy(folder, star="log", ring="off"))
    assert (output.images == bare).all() and {d.concept for d in output.decisions} == {"star"}
    assert any(d.fired for d in output.decisions)
    alone, both = (run(pipe, policy(folder, star="redirect", **more)) for more in ({}, {"ring": "log"}))
    assert (alone.images == both.images).all() and alone.decisions == both.decisions[:3]


def test_a_concept_that_others_leave_out_is_not_let_through(pipe: Any, folder: Path) -> None:
    guard = SafeRedirMany.from_pretrained(folder)
    settings = {**guard.config.to_dict(), "prompt_thresholds": (-1e3, -1e3, -2e3), "most": 1}
    crowded = SafeRedirMany(type(guard.config).from_dict(settings), guard.network)
    crowded.save_pretrained(folder.parent / "crowded")
    output = run(pipe, policy(folder.parent / "crowded", star="block", ring="log", fox="redirect"))
    assert output.blocked == [True] * 3 and set(output.blocked_by) == {("star of us",)}
    star, fox = (next(d for d in output.decisions if d.concept == name) for name in ("star", "fox"))
    assert not star.fired and star.unresolved and "Others acted in the place of star" in star.message
    assert fox.fired and not fox.unresolved
    with sr.attach(pipe, crowded) as attached:  # whole, without a policy, too
        pipe(PROMPTS, **CALL)
    assert all(d.unresolved and "Others acted in the place of" in d.message for d in attached.decisions)
    alone = run(pipe, policy(folder.parent / "crowded", ring="log", fox="redirect"))
    assert alone.blocked == [False] * 3 and not any(d.unresolved for d in alone.decisions)


def changed(folder: Path, name: str, **settings: Any) -> Path:
    """The guard with other settings, in a folder beside it."""
    guard = SafeRedirMany.from_pretrained(folder)
    config = type(guard.config).from_dict({**guard.config.to_dict(), **settings})
    return SafeRedirMany(config, guard.network).save_pretrained(folder.parent / name)


def test_what_is_weak_about_a_row_says_nothing_of_the_others_and_nothing_where_it_is_logged(
    pipe: Any, folder: Path
) -> None:
    weak = {"guidance_scales": [7.5], "by_steps": {"20": {"recall": {"rate": 0.1}}}}
    sized = {**weak, "latent_sizes": [[64, 64]]}
    logged = policy(changed(folder, "sized", calibration={"ring": sized}), star="verify", ring="log")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output = run(pipe, logged)
        alone = run(pipe, policy(Path(logged.concepts[0].guard), ring="log"))
    assert not any(d.unverified or "Guidance scale" in d.message for d in output.decisions if d.concept == "star")
    assert all("Guidance scale" in d.message and not d.unverified for d in (*output.decisions[3:], *alone.decisions))
    with pytest.warns(UserWarning, match="Guidance scale 3"):
        acting = run(pipe, policy(changed(folder, "weak", calibration={"ring": weak}), star="verify", ring="redirect"))
    assert [d.unverified for d in acting.decisions] == [False] * 3 + [True] * 3
    with pytest.raises(GuardError, match="calibrated on latents of 64 x 64"):
        run(pipe, policy(Path(logged.concepts[0].guard), star="verify", ring="redirect"))


def test_each_concept_counts_the_steps_in_which_it_acted_itself(pipe: Any, folder: Path) -> None:
    both = changed(folder, "both", prompt_thresholds=(-1e3, 1e3, 1e3), image_thresholds=(1e3, -1e3, 1e3))
    decisions = run(pipe, policy(both, star="redirect", ring="redirect", fox="redirect")).decisions
    assert [(d.first_fired_step, d.steps_redirected) for d in decisions[::3]] == [(0, 4), (1, 3), (None, 0)]


def test_what_is_only_logged_has_another_checksum(folder: Path) -> None:
    checksums: tuple[Callable[[Any], Any], ...] = (
        lambda guard: guard_facts(guard)["digest"],
        lambda guard: guards_digest([guard]),
        guard_fingerprint,
    )
    rows = [policy(folder, star=star, ring=ring) for star in ("redirect", "log") for ring in ("block", "log")]
    star = {"guard": "pictoworld/star"}
    single = [
        sr.Policy.from_dict({"name": "p", "version": 1, "concepts": {"star": {**star, "action": action}}})
        for action in ("log", "redirect")
    ]
    for digest in checksums:
        assert len({digest(guards_of(rules, None)[0][0]) for rules in rows}) == 4
        assert digest(guards_of(policy(folder, star="verify", ring="block"), None)[0][0]) == digest(
            guards_of(rows[0], None)[0][0]
        )
        logged, acting = (digest(guards_of(rules, None)[0][0]) for rules in single)
        assert logged != acting == digest(sr.Guard.from_pretrained("pictoworld/star"))


def test_requests_may_only_be_stricter_about_a_row(pipe: Any, folder: Path) -> None:
    rules = policy(folder, star="off", ring="redirect")
    image = acted_on(pipe, folder)["star"]
    assert run(pipe, rules.stricter({"star of us": "block"})).blocked == [row == image for row in range(3)]
    with pytest.raises(GuardConfigError, match="off is weaker"):
        rules.stricter({"ring of us": "off"})
    with pytest.raises(GuardConfigError, match="switches every concept off"):
        run(pipe, policy(folder, star="off"))


def test_wrong_rows_are_refused(pipe: Any, folder: Path) -> None:
    with pytest.raises(GuardConfigError, match="cat"):
        run(pipe, policy(folder, cat="block"))
    two = {"a": {"guard": "g", "row": "star"}, "b": {"guard": "g"}}
    with pytest.raises(GuardConfigError, match="must each name another row"):
        sr.Policy.from_dict({"name": "p", "version": 1, "concepts": two})
    one = {"a": {"guard": "pictoworld/star", "row": "star"}}
    with pytest.raises(GuardConfigError, match="of one concept; leave out row"):
        run(pipe, sr.Policy.from_dict({"name": "p", "version": 1, "concepts": one}))


@pytest.mark.parametrize(
    ("call", "flags"),
    [
        ({"prompt": " A  STAR anise"}, (True,)),
        ({"prompt": "ａ star anise", "num_images_per_prompt": 2}, (True, True)),
        ({"prompt": "a star anise", "image": object(), "strength": 0.3}, ()),
        ({"prompt": "a star anise", "latents": object()}, ()),
        ({"prompt": "a star anise", "complex_human_instruction": ["draw a star"]}, ()),
        ({"prompt": "a star anise", "something_new": 1}, ()),
        ({"prompt": "a star anise", "guidance_scale": 4.0, "generator": object(), "output_type": "pt"}, (True,)),
        ({"prompt": ["a star anise", "a star"], "prompt_2": None, "negative_prompt": ["", ""]}, (True, False)),
        ({"prompt": ["a star anise"], "prompt_2": ["a star anise"]}, (True,)),
        ({"prompt": "a star anise and a star"}, ()),
        ({"prompt": "a s\u200btar anise"}, ()),
        ({"prompt": "a star, anise"}, ()),
        ({"prompt": "a star anise", "negative_prompt": "anise"}, ()),
        ({"prompt": "a star anise", "prompt_2": "a star"}, ()),
        ({"prompt": "a star anise", "prompt_embeds": torch.zeros(1)}, ()),
        ({"prompt": "a star anise", "cross_attention_kwargs": {"scale": 1}}, ()),
        ({"prompt_embeds": torch.zeros(1)}, ()),
    ],
)  # fmt: skip
def test_only_whole_prompts_are_allowed_and_in_doubt_none(call: dict[str, Any], flags: tuple[bool, ...]) -> None:
    assert allowed_images(["a star anise"], call) == flags
    assert normalised(normalised("ẞ ﬁ Ⅷ")) == normalised("ẞ ﬁ Ⅷ")


def test_an_allowed_prompt_passes_the_prompt_verdict_and_no_other(pipe: Any, folder: Path) -> None:
    image, bare = acted_on(pipe, folder)["star"], run(pipe).images
    others = {"guard": str(folder), "row": "star", "action": "block", "allow": [PROMPTS[image].upper()]}
    rules = sr.Policy.from_dict({"name": "p", "version": 1, "concepts": {"star": others}})
    output = run(pipe, rules)
    assert output.blocked == [False] * 3 and (output.images == bare).all()
    decision = output.decisions[image]
    assert decision.allowed and "allows this prompt" in decision.message and decision.prompt_score is not None
    assert [d.allowed for d in output.decisions] == [row == image for row in range(3)]
    strict = SafeRedirMany.from_pretrained(folder)
    settings = {**strict.config.to_dict(), "image_thresholds": (-1e3,) * 3}
    seen = SafeRedirMany(type(strict.config).from_dict(settings), strict.network)
    seen.save_pretrained(folder.parent / "seen")
    rules = sr.Policy.from_dict(
        {"name": "p", "version": 1, "concepts": {"star": {**others, "guard": str(folder.parent / "seen")}}}
    )
    output = run(pipe, rules)
    assert output.blocked == [True] * 3 and output.decisions[image].allowed


def test_a_guard_of_one_concept_knows_the_allow_list_too() -> None:
    pipe = sr.load_pipeline("pictoworld")
    rule = {"guard": "pictoworld/star", "action": "block", "allow": ["a red star on sand"], "grades": {"any": 4.0}}
    rules = sr.Policy.from_dict({"name": "p", "version": 1, "concepts": {"star": rule}})
    with sr.protect(pipe, policy=rules) as safe:
        output = safe(["a red star on sand", "a red star on snow"], num_inference_steps=1)
        (first, second), guard = output.decisions, safe.guards[0]
        assert first.allowed and not first.fired and not second.allowed and second.fired
        assert first.grade == rules.concepts[0].grade(first.image_score) and second.grade == "any" and not guard.allowed
        guard.allowed = {"star": (True,)}
        with (
            sr.attach(sr.load_pipeline("pictoworld"), guard) as attached,
            pytest.raises(GuardError, match="other images"),
        ):
            attached._seam.pipe(["a red star", "a heart"], num_inference_steps=1)
    duo = {"guard": "pictoworld/star-duo", "allow": ["a red star on sand"]}
    with pytest.raises(GuardConfigError, match="has no prompt verdict"):
        sr.protect(pipe, policy=sr.Policy.from_dict({"name": "p", "version": 1, "concepts": {"star": duo}}))


def test_more_allowed_prompts_are_weaker() -> None:
    def shop(*allow: str) -> sr.Policy:
        concepts = {"star": {"guard": "g", "allow": list(allow)}}
        return sr.Policy.from_dict({"name": "p", "version": 1, "concepts": concepts})

    (added,) = shop("A star anise").changes(shop("a star anise", "a starfish"))
    (removed,) = shop("a star anise", "a starfish").changes(shop("a  star anise"))
    assert added.is_weaker and not removed.is_weaker and added.what == "star.allow"
    assert shop("a").fingerprint != shop("b").fingerprint
    with pytest.raises(GuardConfigError, match="a list of prompts"):
        sr.Policy.from_dict({"name": "p", "version": 1, "concepts": {"star": {"guard": "g", "allow": "a starfish"}}})
