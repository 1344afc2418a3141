"""Encoders by name, their vectors, and what is refused."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.encoders.tiny_clip import save_clip
from torch import Tensor

from saferedir.bench.generation.resources import encoder_digest
from saferedir.encoders.base import Encoder
from saferedir.encoders.callable import CallableEncoder
from saferedir.encoders.clip import CLIPEncoder
from saferedir.encoders.inception import InceptionEncoder
from saferedir.encoders.registry import (
    ENCODERS,
    RegisteredEncoder,
    encoder_class,
    encoder_names,
    load_encoder,
    register,
)
from saferedir.errors import EncoderError, JudgeError, MetricError, SaferedirError
from saferedir.judges.pictoworld import PictoWorldJudge
from saferedir.metrics import ClipModel

IMAGES = torch.rand(5, 3, 40, 48, generator=torch.Generator().manual_seed(0))
TEXTS = ["a red circle", "stripes", " ".join("a" * 75) + " b c d"]


def means(images: Tensor) -> Tensor:
    return images.mean(dim=(2, 3))


def shades(images: Tensor) -> Tensor:
    return 1 - images.mean(dim=(2, 3))


def lengths(texts: list[str]) -> Tensor:
    return torch.tensor([[float(len(text)), 1.0, 0.0] for text in texts])


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def test_every_row_of_the_table_is_an_encoder_of_that_name() -> None:
    for name in encoder_names():
        found = encoder_class(name)
        assert issubclass(found, Encoder) and found.name == name
    assert list(ENCODERS) == encoder_names()


def test_unknown_names_and_options_are_one_sentence() -> None:
    with pytest.raises(EncoderError, match="there is no encoder 'clipp'; did you mean 'clip'"):
        load_encoder("clipp")
    with pytest.raises(EncoderError, match=r"encoder 'clip' takes the options model \(required\), allow_download"):
        load_encoder("clip")
    with pytest.raises(EncoderError, match="encoder 'pictoworld' takes the options none; found layer"):
        load_encoder("pictoworld", layer=3)
    with pytest.raises(EncoderError, match="an encoder named 'clip' is registered already"):
        register("clip", RegisteredEncoder("a:B", ""))


def test_clip_is_the_metrics_clip(clip_folder: Path) -> None:
    encoder, model = load_encoder("clip", model=str(clip_folder), batch=2), ClipModel.load(clip_folder)
    torch.testing.assert_close(encoder.encode(IMAGES), model.images(IMAGES))
    found = encoder.encode_texts(TEXTS)
    assert found is not None and encoder.reads_texts
    torch.testing.assert_close(found[0], model.texts(TEXTS)[0])
    assert found[1].tolist() == [False, False, True]
    with pytest.raises(EncoderError, match=r"no complete CLIP 'nowhere' .* set allow_download = true"):
        load_encoder("clip", model="nowhere")
    with pytest.raises(EncoderError, match="batch is 0"):
        CLIPEncoder(clip_folder, batch=0)


def test_facts_of_clip_tell_weights_words_and_preprocessing_apart(clip_folder: Path, tmp_path: Path) -> None:
    facts = CLIPEncoder(clip_folder).facts()
    assert CLIPEncoder(clip_folder).facts() == facts
    weights = CLIPEncoder(save_clip(tmp_path / "weights", seed=1)).facts()
    resized = CLIPEncoder(save_clip(tmp_path / "resized", side=40)).facts()
    assert weights["weights"] != facts["weights"] and weights["tokenizer"] == facts["tokenizer"]
    assert resized["weights"] == facts["weights"] and resized["preprocessing"] != facts["preprocessing"]
    encoder = CLIPEncoder(clip_folder)
    encoder.clip.limit = 20
    assert encoder.facts()["tokenizer"] != facts["tokenizer"]


def test_the_path_to_a_clip_is_not_part_of_its_checksum(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(clip_folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    places = (clip_folder, tmp_path / "copy", "copy", "./copy")
    assert len({encoder_digest(load_encoder("clip", model=place)) for place in places}) == 1
    other = save_clip(tmp_path / "other", seed=1)
    assert encoder_digest(load_encoder("clip", model=other)) != encoder_digest(load_encoder("clip", model=clip_folder))


def test_functions_are_told_apart_whatever_they_are_called() -> None:
    plain, named, other = (
        CallableEncoder(means),
        CallableEncoder(means, name="mine"),
        CallableEncoder(shades, name="mine"),
    )
    assert "function" not in plain.facts() and named.facts()["function"].endswith(":means")
    assert len({encoder_digest(one) for one in (plain, named, other)}) == 3
    assert (
        load_encoder("callable", function=means, name="mine").facts() == named.facts()
    )  # not the registry's own `name`


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("callable", {"function": 3}, 'function is 3, expected "module:function"'),
        ("callable", {"function": means, "texts": 5}, "texts is 5, expected"),
        ("clip", {"model": 5}, "model is 5, expected a folder or a hub id"),
        ("inception", {"weights": 5}, "weights is 5, expected the path of a file"),
    ],
)
def test_options_of_another_kind_are_one_sentence(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(SaferedirError, match=said):
        load_encoder(name, **options)


def test_using_a_clip_does_not_change_its_facts(clip_folder: Path) -> None:
    used = CLIPEncoder(clip_folder)
    used.encode_texts(TEXTS)
    assert used.facts() == CLIPEncoder(clip_folder).facts()


def test_pictoworld_is_its_judges_features() -> None:
    encoder = load_encoder("pictoworld")
    assert torch.equal(encoder.encode(IMAGES), PictoWorldJudge().features(IMAGES))
    assert encoder.encode_texts(["a star"]) is None and not encoder.reads_texts


def test_inception_reads_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MetricError, match="no weights file"):
        load_encoder("inception", weights=tmp_path / "none.pth")
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")
    stand_in: Any = types.ModuleType("torchmetrics.image.fid")
    stand_in.NoTrainInceptionV3 = lambda name, layers, path: (
        lambda images: images.flatten(1)[:, : int(layers[0])].float()
    )
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", stand_in)
    encoder = InceptionEncoder(weights, layer=64)
    torch.testing.assert_close(encoder.encode(IMAGES), (IMAGES * 255).byte().flatten(1)[:, :64].float())
    first = encoder.facts()
    assert first["layer"] == 64 and encoder_digest(encoder) != encoder_digest(InceptionEncoder(weights, layer=192))
    (tmp_path / "copy.pth").write_bytes(b"one")
    assert encoder_digest(InceptionEncoder(tmp_path / "copy.pth", layer=64)) == encoder_digest(encoder)
    weights.write_bytes(b"two")
    assert InceptionEncoder(weights, layer=64).facts()["weights"] != first["weights"]


def test_a_function_is_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = CallableEncoder(means, texts=lengths, version="2")
    assert torch.equal(encoder.encode(IMAGES), means(IMAGES))
    found = encoder.encode_texts(["ab", "c"])
    assert found is not None and found[0][:, 0].tolist() == [2, 1] and not found[1].any()
    assert encoder.facts()["version"] == "2" and encoder.facts()["texts"].endswith(":lengths")
    assert (
        not CallableEncoder(means, name="mine").reads_texts
        and CallableEncoder(means, name="mine").facts()["id"] == "mine"
    )
    (tmp_path / "my_own_encoder.py").write_text("def dark(images):\n    return 1 - images.mean(dim=(2, 3))\n")
    monkeypatch.chdir(tmp_path)
    named = load_encoder("callable", function="my_own_encoder:dark")
    torch.testing.assert_close(named.encode(IMAGES), 1 - means(IMAGES))
    assert named.facts()["id"] == "my_own_encoder:dark"
    with pytest.raises(JudgeError, match="no function 'light'"):
        load_encoder("callable", function="my_own_encoder:light")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda images: images.mean(dim=(1, 2, 3)), r"gave \(5,\) for 5 images, expected a tensor of shape \(5, d\)"),
        (lambda images: means(images)[:2], r"gave \(2, 3\) for 5 images"),
        (lambda images: means(images)[:, :0], r"gave \(5, 0\) for 5 images"),
        (lambda images: [1.0] * 5, "gave list for 5 images"),
        (lambda images: means(images) / 0 * 0, "not finite for 5 of 5 images"),
    ],
)
def test_vectors_that_cannot_be_are_refused(function: Any, said: str) -> None:
    with pytest.raises(EncoderError, match=said):
        CallableEncoder(function).encode(IMAGES)


def test_texts_that_cannot_be_are_refused() -> None:
    with pytest.raises(EncoderError, match=r"gave \(1, 3\) for 2 texts"):
        CallableEncoder(means, texts=lambda texts: lengths(texts)[:1]).encode_texts(["a", "b"])

    class Unsure(CallableEncoder):
        def texts(self, texts: Any) -> tuple[Tensor, Tensor]:
            return lengths(texts), torch.zeros(len(texts))

    with pytest.raises(EncoderError, match=r"expected bool of shape \(2,\)"):
        Unsure(means).encode_texts(["a", "b"])


def test_images_that_cannot_be_are_refused() -> None:
    encoder = CallableEncoder(means)
    for bad, said in ((IMAGES[0], "expected \\(B, 3, H, W\\)"), (IMAGES * 255, "must lie in \\[0, 1\\]")):
        with pytest.raises(EncoderError, match=said):
            encoder.encode(bad)
