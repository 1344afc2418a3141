"""Checksums of guards do not change when a setting is added that is off: what was measured and recorded stays theirs."""

from __future__ import annotations

from typing import Any

import pytest

from saferedir.attacks.run import guard_facts
from saferedir.bench.generation.resources import guards_digest
from saferedir.guards.saferedir import SafeRedir, SafeRedirConfig
from saferedir.server.engine.fingerprints import guard_fingerprint


def checksums(guard: SafeRedir) -> list[str]:
    return [guards_digest([guard]), guard_fingerprint(guard), guard_facts(guard)["digest"]]


@pytest.mark.parametrize(("value", "is_same"), [("off", True), ("on", False)])
def test_a_later_setting_counts_only_where_it_is_on(value: str, is_same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = SafeRedir.from_pretrained("pictoworld/star")
    before, to_dict = checksums(guard), SafeRedirConfig.to_dict

    def with_later(config: SafeRedirConfig) -> dict[str, Any]:
        return {**to_dict(config), "later": value}

    monkeypatch.setattr(SafeRedirConfig, "to_dict", with_later)
    monkeypatch.setattr(SafeRedirConfig, "options", {**SafeRedirConfig.options, "later": "off"})
    assert [now == then for now, then in zip(checksums(guard), before, strict=True)] == [is_same] * 3
