"""Packaged guards that carry images: small, plain, and the very tensors that `pictoworld/methods.py` makes anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import saferedir as sr
from saferedir.bench.generation.worlds import check_recipe, world_guards
from saferedir.guards.safe_denoiser import SafeDenoiser
from saferedir.guards.spell import SPELL
from saferedir.pictoworld import methods
from saferedir.pictoworld.methods import METHODS, STACKS, WITH_DATA, make_guards
from saferedir.pictoworld.tasks import TASKS
from saferedir.utils.packaged import packaged_guard_path

CLASSES = {"safe-denoiser": SafeDenoiser, "spell": SPELL}


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = sr.load_pipeline("pictoworld")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def assert_same_tensors(packaged: Any, made: Any) -> None:
    """Equal, but for the rounding of a VAE that another processor ran: the last bit of one value in ten at most."""
    ours, theirs = packaged.tensors(), made.tensors()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        other = theirs[name]
        assert value.dtype == other.dtype and value.shape == other.shape, name
        if name.endswith("rows"):
            unit = 1.0 if value.dtype == torch.int8 else 2.0**-9
            assert (value.float() - other.float()).abs().max() <= unit, name
            assert (value != other).float().mean() <= 0.1, name
        else:
            assert torch.allclose(value, other, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("method", WITH_DATA)
@pytest.mark.parametrize("name", TASKS)
def test_a_folder_is_small_plain_and_loads_by_name(name: str, method: str) -> None:
    folder = packaged_guard_path(f"pictoworld/{name}-{method}")
    assert folder is not None
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 1_000_000
    assert {path.name for path in folder.iterdir()} == {"guard_config.json", "model.safetensors", "README.md"}
    assert str(Path.home()) not in (folder / "guard_config.json").read_text()
    guard = sr.Guard.from_pretrained(f"pictoworld/{name}-{method}")
    assert type(guard) is CLASSES[method] and guard.negation is not None  # type: ignore[attr-defined]
    assert guard.config.concept == name and len(guard.negation) == methods.REFERENCES  # type: ignore[attr-defined]
    assert (guard.negation.benign is not None) == (method == "safe-denoiser")  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("method", WITH_DATA)
@pytest.mark.parametrize("name", TASKS)
def test_the_package_has_what_is_made_anew(name: str, method: str, pipe: Any) -> None:
    (packaged,), made = make_guards(method, TASKS[name], pipe) or [None], METHODS[method](TASKS[name], pipe)
    assert packaged is not None and packaged.config == made.config
    assert_same_tensors(packaged, made)


def test_the_package_is_used_where_it_fits_the_world(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for name in WITH_DATA:
        monkeypatch.setitem(METHODS, name, lambda task, pipe, name=name: made.append(name))  # type: ignore[attr-defined]
    (stack,) = (stack for stack in STACKS if "safe-denoiser" in stack)
    for method in (*WITH_DATA, stack):
        guards = make_guards(method, TASKS["star"], pipe)
        assert guards is not None and type(guards[-1]) is CLASSES.get(method, SafeDenoiser)
    assert made == []
    monkeypatch.setattr(methods, "vae_fingerprint", lambda vae: "another")
    for method in WITH_DATA:
        make_guards(method, TASKS["star"], pipe)
    assert made == list(WITH_DATA)


def test_the_control_of_re_noising_is_a_recipe_of_its_own(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same gates and the same noise as Safe Denoiser with renoise="stale", and no shift; in no comparison by itself."""
    monkeypatch.setattr(methods.negation_set, "__defaults__", (6, 0))
    (control,) = make_guards("renoise-only", TASKS["star"], pipe) or [None]
    assert control is not None and (control.config.eta, control.config.renoise) == (0.0, "stale")
    assert control.config.gate == "auto" and control.negation.benign is not None  # type: ignore[attr-defined]
    assert "renoise-only" not in (*METHODS, *methods.ORDER)
    check_recipe("pictoworld/renoise-only")
    (again,) = world_guards("pictoworld/renoise-only", "pictoworld/star", pipe)
    assert again.config == control.config
