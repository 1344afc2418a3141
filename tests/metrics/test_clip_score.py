"""CLIP score of a tiny random CLIP, against a computation that goes its own way."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import make_tokenizer
from tests.encoders.tiny_clip import save_clip
from transformers import CLIPModel

from saferedir.errors import MetricError
from saferedir.metrics import ClipModel, clip_score


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


IMAGES = torch.rand(3, 3, 48, 40, generator=torch.Generator().manual_seed(0))
TEXTS = ["a red circle", "stripes", "a b c"]


def test_score_agrees_with_an_independent_computation(folder: Path) -> None:
    """Pillow resizes, arithmetic normalises, and the whole model's own logits are the cosines times its scale."""
    model, tokenizer = CLIPModel.from_pretrained(folder), make_tokenizer()
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = []
    for image in IMAGES:
        array = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        small = Image.fromarray(array).resize((32, 38), Image.Resampling.BICUBIC).crop((0, 3, 32, 35))
        values = torch.from_numpy(np.array(small)) / 255
        pixels.append(((values - mean) / std).permute(2, 0, 1))
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(pixel_values=torch.stack(pixels), **tokens).logits_per_image
    expected = 100 * logits.diag() / model.logit_scale.exp().item()
    found = ClipModel.load(folder).score(IMAGES, TEXTS)
    assert found.values.tolist() == pytest.approx(expected.tolist(), abs=1e-3)
    assert not found.is_truncated.any() and found.warnings == ()


def test_batches_change_nothing_and_rows_have_unit_length(folder: Path) -> None:
    clip = ClipModel.load(str(folder))
    torch.testing.assert_close(clip.images(IMAGES, batch=2), clip.images(IMAGES))
    torch.testing.assert_close(clip.texts(TEXTS, batch=1)[0], clip.texts(TEXTS)[0])
    assert clip.images(IMAGES).norm(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())


def test_a_text_beyond_77_tokens_is_flagged_and_its_end_is_not_read(folder: Path) -> None:
    clip = ClipModel.load(folder)
    fits, cut = " ".join("a" * 75), " ".join("a" * 75) + " b c d"
    found = clip.score(IMAGES, [fits, cut, "a"])
    assert clip.limit == 77
    assert found.is_truncated.tolist() == [False, True, False]
    assert found.warnings == ("1 of 3 texts have over 77 tokens, and CLIP read their beginning only.",)
    embeds, _ = clip.texts([fits, cut])
    torch.testing.assert_close(embeds[0], embeds[1])


def test_clip_score_is_a_hundred_cosines() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    b = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-3.0, 0.0]])
    assert clip_score(a, b).tolist() == pytest.approx([100, 100 / math.sqrt(2), -100])
    with pytest.raises(MetricError, match="expected \\(3, 2\\)"):
        clip_score(a, b[:2])


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"no complete CLIP .*download=True"):
        ClipModel.load(tmp_path / "nothing")
    clip = ClipModel.load(folder)
    with pytest.raises(MetricError, match="3 images and 1 texts"):
        clip.score(IMAGES, ["a"])
    with pytest.raises(MetricError, match="no texts"):
        clip.texts([])
    with pytest.raises(MetricError, match="expected \\(N, 3, H, W\\)"):
        clip.images(IMAGES[0])
