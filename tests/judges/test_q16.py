"""Q16: a tiny CLIP with random weights and two prompts in a safetensors file; a pickle is never opened."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from saferedir.errors import JudgeError
from saferedir.judges.presets import preset
from saferedir.judges.q16 import Q16Judge
from saferedir.judges.registry import load_judge
from saferedir.judges.selftest import selftest

IMAGES = (torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255).round() / 255


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**part, "vocab_size": 12, "max_position_embeddings": 8},
        vision_config={**part, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(folder)
    save_file({"prompts": torch.randn(2, 8)}, folder / "q16.safetensors")
    return folder


def test_it_gives_the_softmax_of_both_prompts(clip: Path) -> None:
    judge = load_judge("q16", model=clip, prompts=clip / "q16.safetensors", scale=5.0, batch=3)
    assert isinstance(judge, Q16Judge)
    features = judge.features(IMAGES)
    assert features is not None
    network = CLIPModel.from_pretrained(clip).eval()
    values = CLIPImageProcessorPil.from_pretrained(clip)(
        [Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()) for image in IMAGES],
        return_tensors="pt",
    )
    with torch.no_grad():
        output = network.get_image_features(**values)
    expected = torch.nn.functional.normalize(getattr(output, "pooler_output", output), dim=1)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)
    prompts = torch.nn.functional.normalize(judge.prompts, dim=1)
    both = (5.0 * expected @ prompts.T).softmax(dim=1)
    torch.testing.assert_close(judge(IMAGES).values[:, 0], both[:, 1], atol=1e-5, rtol=1e-4)
    other = load_judge("q16", model=clip, prompts=clip / "q16.safetensors", scale=5.0, inappropriate=0)
    torch.testing.assert_close(other(IMAGES).values[:, 0], both[:, 0], atol=1e-5, rtol=1e-4)
    assert all(check.passed for check in selftest(judge))


def test_the_preset_counts_from_its_threshold_on(clip: Path) -> None:
    found = preset("eval_unlearn_q16")
    judge = found.load_judge(model=clip, prompts=clip / "q16.safetensors")
    found.check(judge.facts())
    assert torch.equal(found.rule.decide(judge(IMAGES)), judge(IMAGES).values[:, 0] >= 0.9)
    with pytest.raises(JudgeError, match="scale"):
        found.check(load_judge("q16", model=clip, prompts=clip / "q16.safetensors", scale=5.0).facts())


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path, str]]:
        return Path.write_text, (self.path, "unpickled")


@pytest.mark.parametrize("name", ["prompts.p", "prompts.safetensors"])
def test_nothing_is_unpickled(clip: Path, tmp_path: Path, name: str) -> None:
    path, left = tmp_path / name, tmp_path / "left"
    path.write_bytes(pickle.dumps(Trap(left)))
    with pytest.raises(JudgeError, match="safetensors"):
        load_judge("q16", model=clip, prompts=path)
    assert not left.exists()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            {"prompts": torch.zeros(3, 8)},
            r"holds prompts \(3, 8\); expected one tensor 'prompts' of shape \(2, width\)",
        ),
        ({"a": torch.ones(2, 8), "b": torch.ones(2, 8)}, "expected one tensor 'prompts'"),
        ({"prompts": torch.zeros(2, 8)}, "one of them is zero"),
        ({"prompts": torch.full((2, 8), float("nan"))}, "are not finite"),
        (
            {"prompts": torch.ones(2, 5)},
            "are 5 wide, where the CLIP model .* has 8; they belong to another CLIP",
        ),
    ],
)
def test_prompts_of_another_form_are_one_sentence(
    clip: Path, tmp_path: Path, tensors: dict[str, torch.Tensor], words: str
) -> None:
    save_file(tensors, tmp_path / "q16.safetensors")
    with pytest.raises(JudgeError, match=words):
        load_judge("q16", model=clip, prompts=tmp_path / "q16.safetensors")
