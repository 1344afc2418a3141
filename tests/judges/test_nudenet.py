"""The NudeNet judge against the package's own `detect`: channel order, resize, cuts and suppression."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.judges.synthetic import FixedNetwork, as_tensor, detector_output, drawn_face

from saferedir.errors import JudgeError, MissingExtraError
from saferedir.judges import selftest
from saferedir.judges.presets import PRESETS
from saferedir.judges.registry import load_judge

package: Any = pytest.importorskip("nudenet.nudenet")
ORDERS = ("RGB", "BGR")


@pytest.fixture(scope="module")
def detector() -> Any:
    return package.NudeDetector()


@pytest.fixture
def given(tmp_path: Path) -> Callable[[np.ndarray, str], Any]:
    """An image as the package must be given it so that its network sees the channels in that order."""

    def give(array: np.ndarray, channels: str) -> Any:
        if channels == "RGB":
            return array
        Image.fromarray(array).save(tmp_path / "image.png")
        return str(tmp_path / "image.png")

    return give


def images() -> list[np.ndarray]:
    generates = np.random.default_rng(0)
    noise = [generates.integers(0, 256, size, dtype=np.uint8) for size in ((64, 64, 3), (50, 333, 3), (700, 90, 3))]
    return [drawn_face(), np.ascontiguousarray(drawn_face()[:200]), *noise]


@pytest.mark.parametrize("channels", ORDERS)
def test_the_network_sees_what_the_package_s_network_sees(channels: str, given: Callable[..., Any]) -> None:
    judge: Any = load_judge("nudenet", channels=channels, resize="pad")
    for array in images():
        assert np.array_equal(judge.blob([array]), package._read_image(given(array, channels))[0])


@pytest.mark.parametrize("channels", ORDERS)
def test_a_drawing_gets_the_scores_that_detect_gives_it(
    channels: str, given: Callable[..., Any], detector: Any
) -> None:
    scores = load_judge("nudenet", channels=channels, resize="pad")(as_tensor(drawn_face()))
    expected = dict.fromkeys(package.__dict__["__labels"], 0.0)
    found = detector.detect(given(drawn_face(), channels))
    assert found
    for box in found:
        expected[box["class"]] = max(expected[box["class"]], box["score"])
    torch.testing.assert_close(scores.values[0, :18], torch.tensor(list(expected.values())), atol=0, rtol=1e-6)
    assert (scores.values[0, 18:] >= scores.values[0, :18]).all()


@pytest.mark.parametrize("channels", ORDERS)
@pytest.mark.parametrize("seed", range(6))
def test_cuts_and_suppression_are_the_package_s(
    channels: str, seed: int, given: Callable[..., Any], detector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = FixedNetwork(detector_output(seed))
    judge: Any = load_judge("nudenet", channels=channels, resize="pad")
    judge.session = network
    monkeypatch.setattr(detector, "onnx_session", network)
    for array in images():
        expected = detector.detect(given(array, channels))
        found = judge.detections(as_tensor(array))[0]
        assert len(expected) > 5
        assert [(box.label, box.score) for box in found] == [(one["class"], one["score"]) for one in expected]
        assert [[int(side) for side in box.box] for box in found] == [one["box"] for one in expected]
        raw = torch.from_numpy(network.output[4:].max(axis=1))
        assert torch.equal(judge(as_tensor(array)).values[0, 18:], raw)


@pytest.mark.parametrize("seed", range(4))
def test_a_threshold_on_suppressed_scores_equals_a_detector_that_drops_lower_boxes_first(seed: int) -> None:
    output = detector_output(seed)
    judge: Any = load_judge("nudenet", resize="stretch")
    judge.session = FixedNetwork(output)
    image = torch.zeros(1, 3, 64, 64)
    low = [box for box in judge.detections(image)[0] if box.score >= 0.5]
    output[4:][:, output[4:].max(axis=0) < 0.5] = 0
    assert judge.detections(image)[0] == low


def test_one_score_has_no_place_for_a_suppressed_part() -> None:
    """A covered part over an exposed one removes it: suppression is blind to the class, the raw column is not."""
    output = np.zeros((22, 2100), np.float32)
    output[:4, :2] = np.array([[160, 160, 80, 80], [161, 160, 80, 80]], np.float32).T
    judge: Any = load_judge("nudenet")
    exposed, covered = judge.classes.index("BUTTOCKS_EXPOSED"), judge.classes.index("BUTTOCKS_COVERED")
    output[4 + exposed, 0], output[4 + covered, 1] = 0.7, 0.8
    judge.session = FixedNetwork(output)
    scores = judge(torch.zeros(1, 3, 320, 320))
    assert scores.column("BUTTOCKS_EXPOSED").item() == 0
    assert scores.column("BUTTOCKS_EXPOSED@raw").item() == pytest.approx(0.7)
    assert scores.column("BUTTOCKS_COVERED").item() == pytest.approx(0.8)


def test_order_and_resize_change_the_scores_of_one_drawing() -> None:
    image = as_tensor(drawn_face())
    seen = {
        (channels, resize): load_judge("nudenet", channels=channels, resize=resize)(image).values
        for channels in ORDERS
        for resize in ("pad", "stretch")
    }
    kinds = list(seen.values())
    assert all(not torch.equal(one, other) for place, one in enumerate(kinds) for other in kinds[:place])


@pytest.mark.parametrize("channels", ORDERS)
@pytest.mark.parametrize("resize", ["pad", "stretch"])
def test_the_self_test_passes_and_sees_a_wrong_order_or_resize(channels: str, resize: str) -> None:
    judge: Any = load_judge("nudenet", channels=channels, resize=resize)
    assert all(check.passed for check in selftest.selftest(judge))
    wrong: Any = load_judge("nudenet", channels=channels, resize=resize)
    right = wrong.blob
    wrong.blob = lambda images: right(images)[:, ::-1]
    assert not wrong.selftest()[0].passed
    wrong.blob = right
    other: Any = load_judge("nudenet", channels=channels, resize="stretch" if resize == "pad" else "pad")
    wrong.blob = other.blob
    assert not wrong.selftest()[1].passed


def test_batches_equal_single_images() -> None:
    noise = torch.rand(5, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_judge("nudenet", batch=2)(noise).values, load_judge("nudenet", batch=16)(noise).values)
    assert load_judge("nudenet")(noise[:0]).values.shape == (0, 36)


def test_every_preset_s_labels_are_columns_and_its_options_reach_the_facts() -> None:
    presets = [preset for preset in PRESETS.values() if preset.judge == "nudenet"]
    judges = {str(preset.options): preset.load_judge() for preset in presets}
    for preset in presets:
        judge = judges[str(preset.options)]
        preset.check(judge.facts())
        assert len(preset.rule.decide(judge(torch.zeros(1, 3, 32, 32)))) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": "GBR"}, "expected RGB or BGR"),
        ({"resize": "crop"}, "expected stretch or pad"),
        ({"suppression": 0}, r"expected an overlap in \(0, 1\]"),
        ({"resolution": 100}, "multiple of 32"),
        ({"weights": "nowhere.onnx"}, "there is no ONNX file nowhere.onnx"),
        ({"chanels": "RGB"}, "takes the options channels, resize"),
    ],
)
def test_a_wrong_option_is_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(JudgeError, match=words):
        load_judge("nudenet", **options)


def test_without_the_extra_the_sentence_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nudenet.nudenet", None)
    with pytest.raises(MissingExtraError, match=r'pip install "saferedir\[nudenet\]"'):
        load_judge("nudenet")
