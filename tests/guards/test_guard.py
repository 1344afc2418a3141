"""Guards as objects: configs, folders on disk, the registry, packaged names; no pipeline needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import saferedir as sr
from saferedir.guard import Guard, GuardConfig
from saferedir.guards import methods, registry
from saferedir.utils.packaged import list_packaged_guards, packaged_guard_path


@dataclass(frozen=True, kw_only=True)
class ScaleConfig(GuardConfig):
    strength: float = 1.0
    layers: tuple[int, ...] = (1, 2)

    def validate(self) -> None:
        self.require(self.strength >= 0, "strength", "a number >= 0")


class Scale(Guard[ScaleConfig]):
    """A guard with one tensor."""

    method = "scale-for-tests"
    config_class = ScaleConfig

    def __init__(self, config: ScaleConfig) -> None:
        super().__init__(config)
        self.weight = torch.zeros(3)

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.weight = tensors["weight"]


@pytest.fixture(autouse=True)
def scale_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each test here only: other tests compare the registry with what there is."""
    monkeypatch.setitem(methods._METHODS, "scale-for-tests", f"{__name__}:Scale")


def test_the_old_name_of_warning_text_still_works() -> None:
    with pytest.warns(DeprecationWarning, match="Careful.caution is an old name; define Careful.warning_text"):

        class Careful(Scale):
            def caution(self) -> str | None:
                return "mind the gap"

    assert Careful(ScaleConfig(concept="star")).warning_text() == "mind the gap"
    with pytest.warns(DeprecationWarning, match="warning_text"):
        assert Scale(ScaleConfig(concept="star")).caution() is None


@pytest.mark.parametrize("base_says", [None, "weak"])
def test_a_subclass_may_ask_its_base_by_the_old_name(base_says: str | None) -> None:
    class Base(Scale):
        def warning_text(self) -> str | None:
            return base_says

    with pytest.warns(DeprecationWarning):

        class Careful(Base):
            def caution(self) -> str | None:
                return super().caution() or "mind the gap"

        class Wary(Careful):
            def caution(self) -> str | None:
                return f"{super().caution()}!"

        expected = base_says or "mind the gap"
        assert Careful(ScaleConfig(concept="star")).warning_text() == expected
        assert Wary(ScaleConfig(concept="star")).warning_text() == f"{expected}!"
        assert Wary(ScaleConfig(concept="star")).caution() == f"{expected}!"


def test_a_saferedir_guard_with_the_old_name_is_heard() -> None:
    from saferedir.guards.saferedir import SafeRedir

    with pytest.warns(DeprecationWarning):

        class Careful(SafeRedir):
            def caution(self) -> str | None:
                return "mind the gap"

    assert Careful.warning_text is Careful.caution


def test_a_guard_folder_round_trips(tmp_path: Path) -> None:
    guard = Scale(ScaleConfig(concept="star", strength=2.0, backbone={"architecture": {"family": "x"}}))
    guard.weight = torch.arange(3.0)
    folder = guard.save_pretrained(tmp_path / "star")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "guard_config.json",
        "model.safetensors",
    ]
    for cls in (Guard, Scale):
        loaded = cls.from_pretrained(folder)
        assert type(loaded).__name__ == "Scale" and loaded.config.to_dict() == guard.config.to_dict()
        assert torch.equal(loaded.tensors()["weight"], guard.weight)
    assert Scale.from_pretrained(folder, force=True).config.backbone is None


def test_saving_again_replaces_guard_and_card_and_keeps_other_files(tmp_path: Path) -> None:
    Scale(ScaleConfig(concept="star")).save_pretrained(tmp_path / "star")
    (tmp_path / "star" / "notes.txt").write_text("mine")
    Scale(ScaleConfig(concept="moon")).save_pretrained(tmp_path / "star")
    assert Guard.from_pretrained(tmp_path / "star").config.concept == "moon"
    assert "moon" in (tmp_path / "star" / "README.md").read_text()
    assert (tmp_path / "star" / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["star"]


def test_a_failed_save_leaves_nothing_behind_and_foreign_folders_alone(tmp_path: Path) -> None:
    guard = Scale(ScaleConfig(concept="star", strength=float("inf")))
    with pytest.raises(ValueError):
        guard.save_pretrained(tmp_path / "star")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(sr.GuardConfigError, match="not empty"):
        Scale(ScaleConfig(concept="star")).save_pretrained(tmp_path)


def test_a_guard_without_weights_writes_none(tmp_path: Path) -> None:
    guard: Guard[GuardConfig] = Guard(GuardConfig(concept="star"))
    assert not (guard.save_pretrained(tmp_path / "g") / "model.safetensors").exists()


def test_configs_name_what_is_wrong_with_them(tmp_path: Path) -> None:
    assert ScaleConfig.from_dict({"concept": "star", "layers": [3]}).layers == (3,)
    with pytest.raises(sr.GuardConfigError, match="strengt'"):
        ScaleConfig.from_dict({"concept": "star", "strengt": 1})
    with pytest.raises(sr.GuardConfigError, match="'concept'"):
        ScaleConfig.from_dict({})
    with pytest.raises(sr.GuardConfigError, match="strength is -1"):
        ScaleConfig(concept="star", strength=-1)
    folder = Scale(ScaleConfig(concept="star")).save_pretrained(tmp_path / "star")
    (folder / "guard_config.json").write_text(json.dumps({"method": "no-such-method"}))
    with pytest.raises(sr.GuardConfigError, match="no-such-method"):
        Guard.from_pretrained(folder)
    (folder / "guard_config.json").write_text("{")
    with pytest.raises(sr.GuardConfigError, match="cannot read"):
        Guard.from_pretrained(folder)


def test_damaged_weights_are_an_error(tmp_path: Path) -> None:
    folder = Scale(ScaleConfig(concept="star")).save_pretrained(tmp_path / "star")
    (folder / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(sr.GuardConfigError, match="damaged"):
        Guard.from_pretrained(folder)


def test_the_registry_raises_on_a_clash() -> None:
    registry.register("scale-for-tests", f"{__name__}:Scale")
    with pytest.raises(sr.GuardConfigError, match="already registered"):
        registry.register("scale-for-tests", "elsewhere:Scale")
    assert "saferedir" in registry.methods()


@pytest.mark.parametrize("name", ["pictoworld/no-such-guard", "no/such/folder", "nothing", "pictoworld/../weights"])
def test_unknown_guards_are_one_sentence(name: str) -> None:
    with pytest.raises(sr.GuardNotFoundError, match="packaged one"):
        Guard.from_pretrained(name)


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **settings: object) -> str:
        assert settings["allow_patterns"] == ["*.json", "*.safetensors", "*.md"]
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(sr.GuardNotFoundError, match="check the name and the network"):
        Guard.from_pretrained("someone/some-guard")


def test_packaged_guards_are_found_by_name() -> None:
    for name in list_packaged_guards():
        assert packaged_guard_path(name) is not None
    assert packaged_guard_path("pictoworld") is None


@pytest.mark.parametrize("name", ["nothing", "no/such/folder", "/"])
def test_unknown_pipelines_are_one_sentence(name: str) -> None:
    with pytest.raises(sr.GuardNotFoundError, match="packaged one"):
        sr.load_pipeline(name)


@pytest.mark.parametrize("constant", ["NaN", "Infinity"])
def test_a_config_with_a_number_nothing_can_be_decided_by_is_refused(tmp_path: Path, constant: str) -> None:
    folder = Scale(ScaleConfig(concept="star")).save_pretrained(tmp_path / "star")
    config = folder / "guard_config.json"
    config.write_text(config.read_text().replace('"strength": 1.0', f'"strength": {constant}').replace("1.0", constant))
    with pytest.raises(sr.GuardConfigError, match="no number to decide by"):
        Guard.from_pretrained(folder)
