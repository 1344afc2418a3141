"""CLIP and image classifiers of `transformers`: tiny ones with random weights, saved to a folder; torchvision stays out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from saferedir.errors import JudgeError
from saferedir.judges.base import Scores
from saferedir.judges.presets import preset
from saferedir.judges.registry import load_judge
from saferedir.judges.rules import InTop
from saferedir.judges.selftest import selftest

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
IMAGES = (torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
TEXTS = ["a star", "a circle", "a heart"]


def preprocessing(folder: Path, kind: str, **size: int) -> None:
    values = {"image_processor_type": kind, "do_resize": True, "size": size, "resample": 2, "do_rescale": True}
    values |= {"rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("styles")
    torch.manual_seed(0)
    names = ("vincent-van-gogh", *(f"style-{place}" for place in range(1, 129)))
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        id2label=dict(enumerate(names)),
        label2id={name: place for place, name in enumerate(names)},
        initializer_range=0.5,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    preprocessing(folder, "ViTImageProcessor", height=32, width=32)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**part, "vocab_size": 12, "max_position_embeddings": 8, "eos_token_id": 1, "bos_token_id": 0},
        vision_config={**part, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    words = {w: i for i, w in enumerate(["<s>", "</s>", "<pad>", "a", "star", "circle", "heart", "of", "image"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<pad>", model_max_length=8
    ).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, do_center_crop=False, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)
    return folder


def test_a_classifier_gives_the_model_s_own_probabilities(vit: Path) -> None:
    judge = load_judge("classifier", model=vit)
    with torch.no_grad():
        logits = ViTForImageClassification.from_pretrained(vit).eval()(normalised(IMAGES)).logits
    values, columns = judge(IMAGES).group("class")
    torch.testing.assert_close(columns, logits.softmax(dim=1), atol=1e-5, rtol=1e-4)
    assert values[0] == "vincent-van-gogh" and len(values) == 129
    for k in (1, 3, 10):
        expected = (logits.argsort(dim=1, descending=True)[:, :k] == 0).any(dim=1)
        found = preset(f"vangogh_top{k}")
        found.check(judge.facts())
        assert torch.equal(found.rule.decide(judge(IMAGES)), expected)
    assert all(check.passed for check in selftest(judge))


def test_classes_by_index(vit: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1], layer_type="basic", num_labels=1000)
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    preprocessing(tmp_path, "ConvNextImageProcessor", shortest_edge=32)
    found = preset("imagenet_top1_church")
    judge = found.load_judge(model=tmp_path)
    found.check(judge.facts())
    scores = judge(IMAGES)
    assert torch.equal(found.rule.decide(scores), scores.values.argmax(dim=1) == 497)
    by_name = load_judge("classifier", model=tmp_path)
    assert torch.equal(by_name(IMAGES).values, scores.values)
    with pytest.raises(JudgeError, match="needs scores made with names = 'index', these were made with 'name'"):
        found.check(by_name.facts())


@pytest.mark.parametrize("template", ["{}", "an image of {}"])
def test_zero_shot_clip_gives_the_model_s_own_probabilities(clip: Path, template: str) -> None:
    judge = load_judge("clip", model=clip, texts=TEXTS, template=template, batch=2)
    tokens = PreTrainedTokenizerFast.from_pretrained(clip)(
        [template.format(text) for text in TEXTS], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        output = CLIPModel.from_pretrained(clip).eval()(
            pixel_values=normalised(IMAGES), **{name: tokens[name] for name in ("input_ids", "attention_mask")}
        )
    scores = judge(IMAGES)
    assert scores.labels == tuple(f"zero-shot:{text}" for text in TEXTS)
    torch.testing.assert_close(scores.values, output.logits_per_image.softmax(dim=1), atol=1e-5, rtol=1e-4)
    features = judge.features(IMAGES)
    assert features is not None
    torch.testing.assert_close(features, output.image_embeds, atol=1e-5, rtol=1e-4)
    best = output.logits_per_image.argmax(dim=1)
    assert torch.equal(InTop("zero-shot", "a circle").decide(scores), best == 1)
    assert all(check.passed for check in selftest(judge))


def test_texts_from_the_command_line_are_split_at_semicolons(clip: Path) -> None:
    assert load_judge("clip", model=str(clip), texts="a star; a circle").labels == (
        "zero-shot:a star",
        "zero-shot:a circle",
    )


def test_facts_tell_two_models_apart(vit: Path, clip: Path) -> None:
    one, other = load_judge("classifier", model=vit).facts(), load_judge("clip", model=clip, texts=TEXTS).facts()
    assert one["preprocessing"] != other["preprocessing"]
    assert one["weights"] != other["weights"] and "32" in one["resize"] and one["version"].startswith("transformers")


def test_no_judge_needs_torchvision(vit: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torchvision", "timm", "open_clip"):
        monkeypatch.setitem(sys.modules, module, None)
    assert len(load_judge("classifier", model=vit)(IMAGES)) == len(load_judge("clip", model=clip, texts="a;b")(IMAGES))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "classifier",
            {"model": "nobody/nothing"},
            "cannot be loaded from 'nobody/nothing'; give a folder of one, or set",
        ),
        ("clip", {"model": "nobody/nothing", "texts": "a;b"}, "cannot be loaded from 'nobody/nothing'"),
        ("clip", {"model": "x", "texts": ["a"]}, "needs 2 or more distinct texts; found 1"),
        ("clip", {"model": "x", "texts": ["a", "a"]}, "needs 2 or more distinct texts"),
        ("clip", {"model": "x", "texts": "a;b", "template": "no place"}, "expected one {} in it"),
        ("classifier", {"model": "x", "names": "title"}, "expected name or index"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(JudgeError, match=words):
        load_judge(name, **options)


def test_an_unknown_class_is_one_sentence(vit: Path) -> None:
    judge = load_judge("classifier", model=vit, names="index")
    with pytest.raises(JudgeError, match="has no value 'vincent-van-gogh'"):
        preset("vangogh_top1").rule.decide(Scores(judge.labels, torch.zeros(1, 129)))
