"""Judges by name, and a judge of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saferedir.errors import JudgeError
from saferedir.judges.base import Judge
from saferedir.judges.callable import CallableJudge, load_function
from saferedir.judges.registry import JUDGES, RegisteredJudge, judge_class, judge_names, load_judge, register
from saferedir.judges.selftest import selftest


def redness(images: Tensor) -> Tensor:
    """(B,) mean of red less mean of the rest."""
    return images[:, 0].mean(dim=(1, 2)) - images[:, 1:].mean(dim=(1, 2, 3))


IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_every_row_of_the_table_is_a_judge_of_that_name() -> None:
    for name in judge_names():
        found = judge_class(name)
        assert issubclass(found, Judge) and found.name == name


def test_an_unknown_judge_or_option_is_one_sentence() -> None:
    with pytest.raises(JudgeError, match="there is no judge 'nudnet'; did you mean 'nudenet'"):
        load_judge("nudnet")
    with pytest.raises(
        JudgeError, match=r"judge 'clip' takes the options model \(required\), texts \(required\), template"
    ):
        load_judge("clip")
    with pytest.raises(JudgeError, match="judge 'pictoworld-template' takes the options none; found top"):
        load_judge("pictoworld-template", top=3)
    with pytest.raises(JudgeError, match="a judge named 'clip' is registered already"):
        register("clip", RegisteredJudge("a:B", ""))
    assert list(JUDGES) == judge_names()


def test_a_function_is_a_judge() -> None:
    judge = CallableJudge(redness, "redness")
    assert torch.equal(judge(IMAGES).column("redness"), redness(IMAGES))
    assert judge.facts()["id"].endswith("test_registry:redness")
    assert all(check.passed for check in selftest(judge))
    two = CallableJudge(lambda images: images.mean(dim=(2, 3))[:, :2], ["colour:red", "colour:green"], name="means")
    assert two(IMAGES).group("colour")[0] == ("red", "green") and two.facts()["id"] == "means"


def test_a_function_is_found_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_judges.py").write_text("def dark(images):\n    return 1 - images.mean(dim=(1, 2, 3))\n")
    monkeypatch.chdir(tmp_path)
    judge = load_judge("callable", function="my_own_judges:dark", labels="dark", version="2")
    torch.testing.assert_close(judge(IMAGES).values[:, 0], 1 - IMAGES.mean(dim=(1, 2, 3)))
    assert judge.facts()["id"] == "my_own_judges:dark" and judge.facts()["version"] == "2"


def test_a_name_of_its_own_does_not_hide_the_function() -> None:
    named = [load_judge("callable", function=place, labels="x", name="mine") for place in ("math:sin", "math:cos")]
    assert [judge.facts()["id"] for judge in named] == ["mine", "mine"]
    assert named[0].facts() != named[1].facts()
    plain = load_judge("callable", function="math:sin", labels="x").facts()
    assert set(plain) == {"id", "weights", "channels", "resize", "floor", "version"}  # as ever, so that checksums stay


@pytest.mark.parametrize(("option", "value"), [("function", 3), ("labels", 5), ("labels", [1, 2])])
def test_options_of_another_kind_are_one_sentence(option: str, value: Any) -> None:
    with pytest.raises(JudgeError, match=rf"^{option} is .*, expected "):
        load_judge("callable", **{"function": redness, "labels": "x", option: value})


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("redness", "not of the form module:function"),
        ("no_such_module_here:f", "cannot be imported"),
        ("math:nothing", "the module 'math' has no function 'nothing'"),
        ("math:pi", "has no function 'pi'"),
    ],
)
def test_a_function_that_is_not_there_is_one_sentence(place: str, words: str) -> None:
    with pytest.raises(JudgeError, match=words):
        load_function(place)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda images: images, r"returned \(4, 3, 8, 8\), expected a tensor of shape \(4, 1\)"),
        (lambda images: [0.0] * len(images), "returned list, expected a tensor"),
        (lambda images: torch.full((len(images),), torch.nan), "not finite"),
    ],
)
def test_a_wrong_answer_is_one_sentence(answer: Any, words: str) -> None:
    with pytest.raises(JudgeError, match=words):
        CallableJudge(answer, ["x"])(IMAGES)


def test_labels_must_be_distinct() -> None:
    with pytest.raises(JudgeError, match="distinct labels; found x, x"):
        CallableJudge(redness, ["x", "x"])
    with pytest.raises(JudgeError, match="found none"):
        CallableJudge(redness, [])


def test_the_self_test_sees_a_judge_that_looks_at_its_neighbours() -> None:
    ranks = CallableJudge(lambda images: redness(images).argsort().argsort().float(), "rank")
    failed = [check.what for check in selftest(ranks) if not check.passed]
    assert failed == ["each image is judged by itself"]
