"""Vision-language judges: a tiny LLaVA and a tiny ShieldGemma 2 with random weights, saved to folders; torchvision stays out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    ShieldGemma2Config,
    ShieldGemma2ForImageClassification,
    SiglipVisionConfig,
)

from saferedir.errors import JudgeError, MissingExtraError
from saferedir.judges import vlm
from saferedir.judges.calibration import calibrate
from saferedir.judges.registry import load_judge
from saferedir.judges.rules import AnyAbove
from saferedir.judges.selftest import selftest
from saferedir.judges.vlm import VLMJudge, answer_tokens, policies_of

IMAGES = (torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
POLICIES = {"star": "The image shall not contain a star.", "emblem": "The image shall contain no emblem."}
TEMPLATE = (
    "{% for m in messages %}user {% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE {% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %} {% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Bytes as tokens, and the answers as whole words."""
    words = ["<pad>", "<s>", "</s>", *special.values(), "Yes", "No", "Unsafe", "Safe"]
    vocabulary = {word: at for at, word in enumerate([*words, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(["Yes", "No", "Unsafe", "Safe"])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", extra_special_tokens=special
    )
    made.add_special_tokens({"additional_special_tokens": list(special.values())})
    return made


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    torch.manual_seed(0)
    tokens = tokenizer(image_token="<image>")
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**part, image_size=32, patch_size=16),
        text_config=LlamaConfig(**part, vocab_size=len(tokens), num_key_value_heads=2, initializer_range=0.5),
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    tokens.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=False
    ).save_pretrained(folder)
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "LlavaProcessor", "patch_size": 16, "image_token": "<image>",
                    "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1})
    )  # fmt: skip
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("IMAGE", "<image>"))
    return folder


@pytest.fixture(scope="module")
def shield(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shield")
    torch.manual_seed(0)
    special = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokens = tokenizer(**special)
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {name: tokens.convert_tokens_to_ids(text) for name, text in special.items()}
    config = ShieldGemma2Config(
        vision_config=SiglipVisionConfig(**part, image_size=32, patch_size=16, vision_use_head=False),
        text_config=Gemma3TextConfig(
            **part, vocab_size=len(tokens), num_key_value_heads=1, head_dim=8, initializer_range=0.5, sliding_window=64
        ),
        mm_tokens_per_image=4,
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        image_token_index=ids["image_token"],
    )
    config.yes_token_index, config.no_token_index = tokens.convert_tokens_to_ids(["Yes", "No"])
    ShieldGemma2ForImageClassification(config).save_pretrained(folder)
    tokens.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Gemma3ImageProcessor", "processor_class": "ShieldGemma2Processor",
                    "do_resize": True, "size": {"height": 32, "width": 32}, "resample": 2, "do_rescale": True,
                    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
                    "image_seq_length": 4})
    )  # fmt: skip
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "ShieldGemma2Processor", "image_seq_length": 4})
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("IMAGE", "<start_of_image>"))
    return folder


def load(model: Path, policies: Any = None, **options: Any) -> VLMJudge:
    judge = load_judge("vlm", model=model, policies=POLICIES if policies is None else policies, **options)
    assert isinstance(judge, VLMJudge)
    return judge


def test_a_generative_model_s_first_answer_token_is_compared(llava: Path) -> None:
    judge = load(llava)
    scores = judge(IMAGES)
    assert scores.labels == ("star", "emblem")
    network = LlavaForConditionalGeneration.from_pretrained(llava).eval()
    text = f"user <image> {judge.question.replace('{policy}', POLICIES['star'])} assistant "
    inputs = judge.processor(
        images=[Image.fromarray((IMAGES[1].permute(1, 2, 0) * 255).round().byte().numpy())],
        text=[text],
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = network(**inputs).logits[0, -1]
    yes, no = judge.processor.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    expected = logits[[yes, no]].softmax(dim=0)[0]
    torch.testing.assert_close(scores.values[1, 0], expected, atol=1e-5, rtol=1e-4)
    assert bool(((scores.values >= 0) & (scores.values <= 1)).all())
    assert (scores.values[:, 0] - scores.values[:, 1]).abs().max() > 1e-4  # the policy is read
    assert (scores.values[0] - scores.values[1]).abs().max() > 1e-4  # and so is the image
    assert all(check.passed for check in selftest(judge)), selftest(judge)


def test_answers_in_json_begin_as_they_are_told(llava: Path) -> None:
    plain = load(llava, yes="Unsafe", no="Safe")
    started = load(llava, yes="Unsafe", no="Safe", answer_start='{"rating": "')
    assert not torch.allclose(plain(IMAGES).values, started(IMAGES).values)
    assert started.facts()["answer_start"] == '{"rating": "' and plain.facts() != started.facts()


def test_yes_and_no_change_places(llava: Path) -> None:
    one = load(llava)(IMAGES).values
    other = load(llava, yes="No", no="Yes")(IMAGES).values
    torch.testing.assert_close(one + other, torch.ones_like(one), atol=1e-5, rtol=0)


def test_a_classifier_for_policies_gives_its_own_probability(shield: Path) -> None:
    judge = load(shield, batch=2)
    scores = judge(IMAGES)
    network = ShieldGemma2ForImageClassification.from_pretrained(shield).eval()
    images = [Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()) for image in IMAGES]
    inputs = judge.processor(
        images=images, policies=list(POLICIES), custom_policies=dict(POLICIES), return_tensors="pt"
    )
    with torch.no_grad():
        expected = network(**inputs).probabilities[:, 0].view(3, 2)
    torch.testing.assert_close(scores.values, expected, atol=1e-5, rtol=1e-4)
    assert all(check.passed for check in selftest(judge)), selftest(judge)
    assert load(shield, "violence").policies["violence"].startswith("No Violence")
    with pytest.raises(JudgeError, match="policy 'star' has no text; give it as star=TEXT"):
        load_judge("vlm", model=shield, policies="star")


def test_it_is_calibrated_and_verifies_like_every_other_judge(llava: Path) -> None:
    judge = load_judge("vlm", model=llava, policies="star=The image shall not contain a star.")
    values = judge(IMAGES).values[:, 0]
    rule = AnyAbove(("star",), float(values.median()), strict=False)
    labels = (values >= values.median()).tolist()
    found = calibrate(judge, rule, IMAGES, labels)
    assert (
        found.recall.value == 1 and found.false_positive_rate.value == 0 and found.fits(judge.facts(), rule.to_dict())
    )
    images = [Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()) for image in IMAGES]
    assert judge.verifier(rule)(images) == labels


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"model": "nobody/nothing", "policies": "a=b"},
            "cannot be loaded from 'nobody/nothing'; give a folder of one",
        ),
        ({"model": "x", "policies": ""}, "expected distinct names, each with its text"),
        ({"model": "x", "policies": "a=b;a=c"}, "expected distinct names"),
        ({"model": "x", "policies": "a=b", "question": "no place"}, "expected a text with {policy} once"),
        ({"model": "x", "policies": "a=b", "dtype": "int8"}, "expected one of float32, bfloat16, float16"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(options: dict[str, str], words: str) -> None:
    with pytest.raises(JudgeError, match=words):
        load_judge("vlm", **options)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, extra: str, purpose: str) -> None:
        raise MissingExtraError(f'{purpose} needs the package {module!r}: pip install "saferedir[{extra}]".')

    monkeypatch.setattr(vlm, "require_extra", missing)
    with pytest.raises(MissingExtraError, match=r'a vision-language judge needs .* "saferedir\[vlm\]"'):
        load_judge("vlm", model="x", policies="a=b")


def test_answers_that_begin_alike_are_refused(llava: Path) -> None:
    with pytest.raises(JudgeError, match="'dull' and 'dusty' begin with the same token"):
        load_judge("vlm", model=llava, policies="a=b", yes="dull", no="dusty")
    tokens = tokenizer()
    yes, no = answer_tokens(tokens, "d", "ull", "rab")
    assert not yes & no and tokens.convert_tokens_to_ids("u") in yes and tokens.convert_tokens_to_ids("r") in no


def test_policies_in_every_form() -> None:
    expected = {"a": "one = two", "b": "three"}
    assert (
        policies_of("a=one = two; b=three")
        == policies_of(["a=one = two", "b=three"])
        == policies_of(expected)
        == expected
    )
