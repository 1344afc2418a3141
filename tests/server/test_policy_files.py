"""Models of the service under a policy file: profiles of keys, stricter requests, decisions by rule, what `/v1/policies` says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tests.server.served import ScriptedModel, served
from typer.testing import CliRunner

import saferedir as sr
from saferedir.attacks.run import verifier_digest
from saferedir.cli import app
from saferedir.errors import GuardError
from saferedir.server import running
from saferedir.server.api.information import policy_items
from saferedir.server.api.records import Asked, record_of
from saferedir.server.api.service import Service
from saferedir.server.config import ModelSettings, read_settings
from saferedir.server.engine.facts import GuardFacts, ModelFacts
from saferedir.server.engine.fingerprints import digest_of
from saferedir.server.engine.pipeline import PipelineModel
from saferedir.server.engine.rows import CallKey, Outcome, Row
from saferedir.server.engine.worker import check_decisions
from saferedir.server.errors import ApiError, ServerError
from saferedir.server.evidence.cells import Subject, _attack_differences
from saferedir.server.evidence.collect import _same_as, collect
from saferedir.server.evidence.write import page_of
from saferedir.server.playground.choices import ALL, policy_choices, score_choices
from saferedir.server.policies import actions_of, check_policies, floor_of, policy_facts

POLICY = """
name = "shop"
version = 3
[concepts.logo]
guard = "pictoworld/star"
action = "redirect"
allow = ["a red star on sand"]
[concepts.dots]
guard = "pictoworld/pointillism"
action = "log"
[concepts.emblem]
guard = "pictoworld/emblem"
action = "off"
[profiles.children]
logo = "block"
"""
SETTINGS = """
[[models]]
name = "pictoworld"
policy = "shop.toml"
steps = 2
[profiles.default]
[profiles.young]
policy_profile = "children"
"""


def written(folder: Path, settings: str = SETTINGS, policy: str = POLICY) -> Path:
    (folder / "shop.toml").write_text(policy)
    (folder / "serve.toml").write_text(settings)
    return folder / "serve.toml"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return read_settings(written(tmp_path_factory.mktemp("serve")))


def test_the_file_is_read_with_the_configuration(settings: Any) -> None:
    (model,) = settings.models
    assert model.rules.fingerprint == sr.Policy.from_dict(model.policy).fingerprint
    assert model.guard_names == ("pictoworld/star", "pictoworld/pointillism", "pictoworld/emblem")
    (item,) = policy_items(model, settings.profiles["young"])
    assert (item.name, item.version, item.fingerprint) == ("shop", 3, model.rules.fingerprint)
    assert item.actions == {"logo": "block", "dots": "log", "emblem": "off"}
    assert actions_of(model, "verify", "") == {"logo": "verify", "dots": "verify", "emblem": "verify"}
    assert settings.changed(port=1).models == settings.models


@pytest.mark.parametrize(
    ("settings", "policy", "sentence"),
    [
        (SETTINGS.replace('policy = "shop.toml"', ""), POLICY, "needs guards, or a policy"),
        (SETTINGS.replace("steps", 'guards = ["pictoworld/star"]\nsteps'), POLICY, "and not both"),
        (SETTINGS.replace("children", "adults"), POLICY, "policy_profile 'adults'"),
        (SETTINGS.replace("shop.toml", "none.toml"), POLICY, "cannot be read as a policy"),
        (SETTINGS, POLICY.replace('"redirect"', '"warn"'), "expected one of off"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(tmp_path: Path, settings: str, policy: str, sentence: str) -> None:
    with pytest.raises(ServerError, match=sentence):
        read_settings(written(tmp_path, settings, policy))


def test_keys_and_requests_get_the_rules_of_their_profile(settings: Any) -> None:
    model = PipelineModel(settings.models[0])

    def run(prompt: str, policy: str = "", profile: str = "", kind: Any = "generate") -> Any:
        key = CallKey(kind, policy, 0, None, profile)
        (outcome,) = model.run(key, [Row(key, prompt, 0, 1e12)])
        check_decisions(outcome, model.facts)
        return outcome

    star = "a red star on snow"
    plain, strict, asked = run(star), run(star, profile="children"), run(star, policy="block")
    assert [d.name for d in plain.decisions] == ["logo", "dots"] and plain.decisions[0].fired and not plain.blocked
    assert strict.blocked and strict.blocked_by == ("logo",) and len(strict.decisions) == 2
    assert asked.blocked and len(asked.decisions) == 3
    first: Any = model._guards[0]
    assert model._protected.guards[0].network is first.network
    checked = run(star, kind="check")
    assert checked.decisions[0].fired and not checked.blocked
    assert not run("a red star on sand", kind="check").decisions[0].fired
    model.close()


def test_a_model_whose_anchor_asks_for_its_concept_is_not_loaded(tmp_path: Path) -> None:
    def settings(anchor: str) -> ModelSettings:
        policy = POLICY.replace('action = "redirect"', f'action = "redirect"\nanchor = "{anchor}"')
        return read_settings(written(tmp_path, policy=policy)).models[0]

    PipelineModel(settings("a red heart on sand")).close()
    with pytest.raises(GuardError, match="'logo' would be redirected to 'a red pentagram', which asks for 'logo'"):
        PipelineModel(settings("a red pentagram"))


def test_what_a_key_is_held_to_is_a_floor_under_the_file(tmp_path: Path) -> None:
    told = SETTINGS + '[profiles.strict]\non_unsafe = "block"\npolicy_profile = "children"\n'
    settings = read_settings(written(tmp_path, told))
    (model,) = settings.models

    class Rules(Service):
        def __init__(self) -> None: ...

    def rules(profile: str, wanted: Any = None) -> tuple[str, str]:
        caller: Any = SimpleNamespace(profile=settings.profiles[profile])
        return Rules().rules(model, wanted, caller)

    assert rules("young") == ("", "children") and rules("young", "verify") == ("verify", "children")
    assert rules("strict") == ("block", "children")
    with pytest.raises(ApiError, match="weaker than block"):
        rules("strict", "redirect")


def test_records_and_evidence_state_the_policy_and_no_guard_that_is_off(settings: Any) -> None:
    (model,) = settings.models
    names = ("pictoworld/star", "pictoworld/pointillism", "pictoworld/emblem")
    facts = ModelFacts("0" * 64, tuple(GuardFacts(name, "saferedir", "x", name, True, True) for name in names), 1, True)
    service: Any = SimpleNamespace(settings=settings)
    stated: dict[str, Any] = {}
    for profile, of_key in settings.profiles.items():
        action, of_file = floor_of(model, of_key)
        row = Row(CallKey("generate", action, of_key.retries, None, of_file), "a heart", 0, 1e12)
        outcome = Outcome(None, True, (), facts=facts)
        record = record_of(service, Asked("key", None, None), model, row, "img_1", "blocked", outcome, None)
        assert record["guards"] == {name: name for name in names[:2]}
        stated[profile] = record["policy"]
        assert "on_unsafe" not in record["policy"] and record["policy_fingerprint"] == digest_of(record["policy"])
    young = stated["young"]
    assert (young["name"], young["version"], young["fingerprint"]) == ("shop", 3, model.rules.fingerprint)
    assert young["profile"] == "children" and young["actions"] == {"logo": "block", "dots": "log", "emblem": "off"}
    assert (young["guards"], young["logged"]) == ([names[0]], [names[1]])

    evidence, _ = collect(settings, [], [], [])
    (of_model,) = evidence["models"]
    assert {guard["name"]: guard["only_logs"] for guard in of_model["guards"]} == {names[0]: False, names[1]: True}
    star = sr.Guard.from_pretrained("pictoworld/star")
    assert of_model["guards"][0]["image_verifier"] == verifier_digest(star) is not None
    assert {profile["name"]: profile["policy"] for profile in of_model["profiles"]} == stated
    page = page_of(evidence)
    assert "policy shop, version 3, its profile children" in page and "pictoworld/emblem" not in page


def test_results_under_another_policy_or_verifier_are_not_of_exactly_this_service(settings: Any) -> None:
    (model,) = settings.models
    subject = Subject(
        model="m", profile="p", backbone={}, bench_model="", guards=("a",), concepts={"a": ("g",)}, bench_guards="",
        bench_parts={}, verifiers=("v",),
        policy=policy_facts(ModelSettings(name="m", guards=("g",)), "verify", 2, ""), on_unsafe="verify", steps=4, guidance=4.0,
    )  # fmt: skip
    entry: dict[str, Any] = {
        "policy": "verify", "policy_settings": {"retries": 2, "image_verifiers": True, "verify": None}, "verifiers": ["v"],
        "call": {"num_inference_steps": 4, "guidance_scale": 4.0}, "cell": {},
    }  # fmt: skip

    def differences(subject: Subject = subject, **changes: Any) -> list[str]:
        return list(_attack_differences(subject, {**entry, **changes}, ("a",)))

    assert differences() == []
    assert differences(verifiers=["w"]) == ["other image verifiers"]
    assert differences(verifiers=None) == ["image verifiers of which nothing is recorded"]
    judged = {"retries": 2, "image_verifiers": True, "verify": "JudgeVerifier"}
    assert differences(policy_settings=judged) == ["a judge of finished images"]
    with_judge = replace(subject, policy={**subject.policy, "verify": ["star"]})
    assert differences(with_judge) == ["no judge that checks finished images"]
    assert "only a name is recorded" in differences(with_judge, policy_settings=judged)[0]
    by_file = replace(subject, policy=policy_facts(model, "", 2, ""), on_unsafe=_same_as(model.rules))
    assert differences(by_file) == ["policy verify instead of the policy file 'shop', version 3"]
    plain = sr.Policy.from_dict({"name": "p", "version": 1, "concepts": {"a": {"guard": "g", "action": "block"}}})
    assert _same_as(plain) == "block"


LOGO: dict[str, Any] = {"guard": "plain/star", "category": "logos", "grades": {"low": -10.0, "high": 3.0}}


def graded(block_at: str) -> dict[str, Any]:
    return {"name": "graded", "version": 1, "concepts": {"logo": {**LOGO, "block_at": block_at}}}


class Named(ScriptedModel):
    """Its decisions have the name of the policy's concept, as those of a model under a policy file have."""

    def _outcome(self, key: CallKey, row: Row) -> Outcome:
        outcome = super()._outcome(key, row)
        return replace(outcome, decisions=tuple(replace(decision, name="logo") for decision in outcome.decisions))


def test_a_text_whose_grade_is_blocked_is_said_to_be_blocked(tmp_path: Path) -> None:
    models = [{"name": level, "policy": graded(level)} for level in ("high", "low")]
    with served(tmp_path, load=lambda settings: Named(), models=models) as service:

        def asked(prompt: str, model: str) -> tuple[Any, Any]:
            checked = service.post("/v1/checks", json={"prompt": prompt, "model": model})
            moderated = service.post("/v1/moderations", json={"input": prompt, "model": model})
            return checked.json(), moderated.json()["results"][0]

        check, result = asked("a red star", "high")
        assert (check["status"], check["categories"]) == ("blocked", ["logos"])
        assert check["guards"][0]["category"] == "logos" and check["guards"][0]["grade"] == "high"
        assert result["flagged"] and result["categories"] == {"star": True, "logos": True}
        check, result = asked("a circle", "high")
        assert (check["status"], check["categories"], result["flagged"]) == ("passed", [], False)
        check, result = asked("a circle", "low")  # below the guard's threshold, which says nothing of grades
        assert (check["status"], check["categories"]) == ("blocked", ["logos"]) and not check["guards"][0]["acts"]
        assert result["flagged"] and result["categories"] == {"star": False, "logos": True}


EDITS = """
name = "shop"
version = 1
[concepts.star]
guard = "pictoworld/star-duo"
[concepts.logo]
guard = "pictoworld/star"
action = "log"
[concepts.other]
guard = "pictoworld/emblem"
action = "off"
[profiles.children]
logo = "block"
"""


def test_edits_are_checked_by_the_verifiers_of_guards_that_act(tmp_path: Path) -> None:
    """pictoworld/star has an image verifier, star-duo has none; one that is off or only logs looks at nothing."""
    (settings,) = read_settings(written(tmp_path, policy=EDITS)).models
    model = PipelineModel(settings)
    key = CallKey("edit", "", 0)
    image = Image.new("RGB", (64, 64), "red")
    (outcome,) = model.run(key, [Row(key, "a heart", 0, 1e12, image)])
    assert outcome.image is not None and {d.name for d in outcome.decisions} == {"star", "logo"}
    assert model._input_verifier(key) is False and model._input_verifier(key._replace(profile="children")) is True
    blocked = model._blocked_by_input(key, {"star": None}, "It shows it.")
    assert [(d.name, d.unresolved) for d in blocked.decisions] == [("star", True), ("logo", False)]
    check_decisions(blocked, model.facts)
    model.close()


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (POLICY.replace("pictoworld/emblem", "guards/none"), "guards/none"),  # of a concept that is off
        (POLICY.replace("pictoworld/pointillism", "pictoworld/star-duo"), "scores nothing"),
        (POLICY.replace("world/emblem", "world/emblem-duo") + 'emblem = "verify"\n', r"children\]: the policy verifies"),
        (POLICY.replace("[concepts.emblem]", '[concepts.emblem]\nrow = "fox"'), "names the row 'fox'"),
        (POLICY + 'emblem = "redirect"\ndots = "redirect"\n', "emblem redirects to .* which names dots"),
    ],
)  # fmt: skip
def test_a_policy_that_its_guards_cannot_keep_is_refused_before_the_port_is_opened(
    tmp_path: Path, policy: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_run", lambda *_: pytest.fail("the service started"))
    file = written(tmp_path, policy=policy)
    result = CliRunner().invoke(app, ["serve", "--config", str(file), "--port", "0"])
    output = " ".join(result.output.split())
    assert result.exit_code == 1 and "policy 'shop' cannot be served" in output and re.search(sentence, output), output
    result = CliRunner().invoke(app, ["policy", "check", str(tmp_path / "shop.toml")])
    assert result.exit_code == 1 and re.search(sentence, " ".join(result.output.split())), result.output


def test_the_playground_offers_what_a_policy_file_says(settings: Any) -> None:
    plain, (model,) = ModelSettings(name="m", guards=("pictoworld/star",)), settings.models
    choices, info = policy_choices(model)
    assert [value for _, value in choices] == [value for _, value in policy_choices(plain)[0]]
    assert "policy file shop, version 3" in info and choices[-1] == ("every concept at least at block", "block")
    assert score_choices([model]) == [ALL, "logo", "dots", "emblem"] and score_choices([plain]) == [
        ALL,
        "pictoworld/star",
    ]


def test_the_policies_of_the_other_tests_can_be_served(settings: Any) -> None:
    check_policies(settings)


@pytest.mark.parametrize(("judges", "says"), [("", True), ('verify = ["star"]', False)])
def test_the_log_says_where_no_image_would_come_out(
    tmp_path: Path, judges: str, says: bool, caplog: pytest.LogCaptureFixture
) -> None:
    policy = POLICY.replace('"pictoworld/star"', '"pictoworld/values"\nrow = "shape-star"').replace("allow =", "#")
    file = written(tmp_path, SETTINGS.replace("steps = 2", f"steps = 2\n{judges}"), policy)
    check_policies(read_settings(file))
    texts = [record.getMessage() for record in caplog.records if "every image is blocked" in record.getMessage()]
    assert len(texts) == says and all("policy 'shop': [profiles.children]: Under" in text for text in texts), texts


def test_a_model_needs_a_policy_or_guards() -> None:
    with pytest.raises(ValueError, match="needs guards, or a policy"):
        ModelSettings(name="pictoworld")
