"""Models of the service under a policy file: profiles of keys, stricter requests, decisions by rule, what `/v1/policies` says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import saferedir as sr
from saferedir.server.api.information import policy_items
from saferedir.server.api.moderation import actions_of
from saferedir.server.api.service import Service
from saferedir.server.config import ModelSettings, read_settings
from saferedir.server.engine.pipeline import PipelineModel
from saferedir.server.engine.rows import CallKey, Row
from saferedir.server.engine.worker import check_decisions
from saferedir.server.errors import ApiError, ServerError

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


def test_a_model_needs_a_policy_or_guards() -> None:
    with pytest.raises(ValueError, match="needs guards, or a policy"):
        ModelSettings(name="pictoworld")
