"""`saferedir --config FILE`: options in a TOML file, checked as if they had been typed; what is typed wins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Run


def test_options_come_from_a_file_and_what_is_typed_wins(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "saferedir.toml"
    file.write_text('[generate]\nsteps = 3\nseed = 5\ncall = {eta = 0.5}\nguard = ["pictoworld/star"]\n')
    result = run("--config", file, "generate", "a blue heart", "--seed", 7, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (record["num_inference_steps"], record["seed"], record["eta"]) == (3, 7, 0.5)
    assert record["guards"] == ["pictoworld/star"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[generates]\nsteps = 3\n", "a table of one of the commands"),
        ("[generate]\nstep = 3\n", "has no option 'step'"),
        ('[generate]\nguard = "pictoworld/star"\n', "expected a list"),
        ("[generate\n", "cannot be read as TOML"),
        ("[train.saferedir]\nrollout = 3\n", "has no option 'rollout'"),
        ("[generate]\nsteps = 30.7\n", "unable to parse string as an integer"),
        ("[generate]\nnum_images = true\n", "num_images is True; expected a value"),
        ("[generate]\nguard = {a = 1}\n", "expected a list"),
        ("[bench.run]\nno-report = true\n", "has no option 'no-report'"),
        ('[generate]\nsteps = "many"\n', "unable to parse string as an integer"),
    ],
)
def test_a_wrong_file_of_options_is_one_sentence(run: Run, tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "saferedir.toml"
    file.write_text(text)
    result = run("--config", file, "generate", "a", "--out", tmp_path / "out")
    assert result.exit_code == 2 and sentence in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_one_sentence(run: Run, tmp_path: Path) -> None:
    result = run("--config", tmp_path / "none.toml", "methods")
    assert result.exit_code == 2 and "cannot be read as TOML" in " ".join(result.output.replace("│", " ").split())


def test_a_file_may_name_an_option_by_its_old_name(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "saferedir.toml"
    file.write_text("[bench.report]\npictures = true\n")
    result = run("--config", file, "bench", "report", tmp_path)
    assert result.exit_code == 1 and "is no bench folder" in " ".join(result.output.split())
