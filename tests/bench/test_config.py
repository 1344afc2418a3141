"""Matrix files: what is wrong is said in one sentence, with the nearest known name, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

import saferedir.bench.planning.config as config_module
from saferedir.bench.planning.config import Matrix, preset_names, read_matrix
from saferedir.errors import BenchError

GOOD = """
title = "small"
attacks = ["none"]
[model.pictoworld]
load = "pictoworld"
[concept.star]
prompts = "pictoworld/star"
judge = {name = "pictoworld", preset = "star"}
[guard.saferedir]
load = "pictoworld/{concept}"
[guard.sld]
recipe = "pictoworld/sld-max"
[guard.both]
stack = ["saferedir", "sld"]
"""


def written(folder: Path, text: str) -> str:
    path = folder / "matrix.toml"
    path.write_text(text)
    return str(path)


def test_a_good_matrix_is_read(tmp_path: Path) -> None:
    matrix = read_matrix(written(tmp_path, GOOD))
    assert matrix.guard["both"].stack == ["saferedir", "sld"]
    assert matrix.seeds == [0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('title = "small"', "", "title is missing"),
        ("attacks =", "atacks =", "did you mean 'attacks'"),
        ("[model.pictoworld]", "[model.pictoworld]\nbach = 3", "did you mean 'batch'"),
        ("[model.pictoworld]", "[model.pictoworld]\nbatch = 0", "model.pictoworld.batch is 0"),
        (', preset = "star"', "", "either a `preset` or a `rule`"),
        ('prompts = "pictoworld/star"', "", "either `prompts` (built-in) or `forget` (a file)"),
        ('stack = ["saferedir", "sld"]', 'stack = ["saferedr"]', "did you mean 'saferedir'"),
        (
            'stack = ["saferedir", "sld"]',
            'stack = ["sld"]\nmethod = "sld"',
            "exactly one of load, recipe, method, stack",
        ),
        ('stack = ["saferedir", "sld"]', 'stack = ["sld"]\nconcepts = ["stars"]', "did you mean 'star'"),
        ("[guard.sld]", "[guard.none]", "always part"),
        ("[guard.sld]", "[guard.sld", "is no TOML"),
        ('attacks = ["none"]', 'attacks = ["none", "none"]', "give each only once"),
        ('attacks = ["none"]', 'attacks = ["none"]\nseeds = [1, 1]', "give each only once"),
        ("judge = {name", 'retain = {file = "a.txt"}\njudge = {name', "would go unused"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(BenchError) as caught:
        read_matrix(written(tmp_path, GOOD.replace(old, new, 1)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_lie_beside_the_matrix(tmp_path: Path) -> None:
    text = GOOD.replace('prompts = "pictoworld/star"', 'forget = {file = "a.txt"}')
    assert read_matrix(written(tmp_path, text)).concept["star"].forget.file == str(tmp_path / "a.txt")


def test_needs_are_asked_for_and_filled_in(tmp_path: Path) -> None:
    text = GOOD.replace('load = "pictoworld"', 'load = "${model}"', 1) + '[needs]\nmodel = "weights of yours"\n'
    name = written(tmp_path, text)
    with pytest.raises(BenchError, match=r"--with model=… \(weights of yours\)"):
        read_matrix(name)
    assert read_matrix(name, {"model": "there"}).model["pictoworld"].load == "there"
    with pytest.raises(BenchError, match="there is no need 'modle'; did you mean 'model'"):
        read_matrix(name, {"modle": "there"})


def test_unknown_presets_and_files() -> None:
    with pytest.raises(BenchError, match="did you mean 'pictoworld-quick'"):
        read_matrix("pictoworld-quik")
    with pytest.raises(BenchError, match=r"there is no file nowhere\.toml"):
        read_matrix("nowhere.toml")


def test_every_preset_is_a_good_matrix() -> None:
    import tomllib

    from saferedir.bench.planning.config import PRESETS

    assert {"pictoworld-quick", "pictoworld-full"} <= set(preset_names())
    for name in preset_names():
        needs = tomllib.loads((PRESETS / f"{name}.toml").read_text()).get("needs", {})
        assert read_matrix(name, dict.fromkeys(needs, "x")).title


def test_models_and_guards_are_found_beside_the_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set" / "guards" / "star").mkdir(parents=True)
    (tmp_path / "here" / "old").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    base = tmp_path / "set"
    for name, expected in (
        ("guards/star", str(base / "guards/star")),
        ("guards/{concept}", str(base / "guards/{concept}")),
        ("./guards/star", str(base / "guards/star")),
        ("../runs/mooon", str(base / "../runs/mooon")),
        ("runs/mooon", str(base / "runs/mooon")),
        ("owner/name", "owner/name"),
        ("hf://guards/star", "hf://guards/star"),
        ("pictoworld/{concept}-duo", "pictoworld/{concept}-duo"),
        ("/x/y", "/x/y"),
    ):
        assert config_module._place(name, base) == expected
    assert config_module._place("pictoworld", base) == "pictoworld"
    with pytest.warns(UserWarning, match="not beside the matrix file"):
        assert config_module._place("old", base) == str(tmp_path / "here" / "old")


def test_a_model_may_name_its_variant_and_loras_which_are_looked_for_beside_the_matrix(tmp_path: Path) -> None:
    (tmp_path / "style.safetensors").write_bytes(b"")
    path = tmp_path / "m.toml"
    path.write_text(
        'title = "t"\n[model.sdxl]\nload = "owner/name"\nvariant = "fp16"\nrevision = "v1"\n'
        'loras = [{load = "style.safetensors", scale = 0.5}, {load = "owner/lora"}]\n'
        '[concept.star]\nprompts = "pictoworld/star"\njudge = {name = "pictoworld", preset = "star"}\n'
    )
    model = read_matrix(str(path)).model["sdxl"]
    assert (model.variant, model.revision, model.config) == ("fp16", "v1", None)
    assert [(one.load, one.scale) for one in model.loras] == [
        (str(tmp_path / "style.safetensors"), 0.5),
        ("owner/lora", 1.0),
    ]
    path.write_text(path.read_text().replace("scale", "scal"))
    with pytest.raises(BenchError, match="did you mean 'scale'"):
        read_matrix(str(path))


def test_draws_is_still_read_as_images_per_prompt() -> None:
    values = {
        "title": "t",
        "draws": 3,
        "model": {"m": {"load": "pictoworld"}},
        "concept": {"star": {"prompts": "pictoworld/star", "judge": {"name": "pictoworld", "preset": "star"}}},
    }
    assert Matrix.model_validate(values).images_per_prompt == 3
