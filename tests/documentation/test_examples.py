"""The pages of examples/ cannot be run here, so that every name, keyword and option in them is checked to exist.

A page is compiled and its imports are executed (its `main` is not); calls of our own functions are bound to their
signatures, attributes are looked up on what a call is annotated to return, and commands are parsed by the command line's
own parser. The costs that a page and the table quote must be those of docs/cost.md.
"""

from __future__ import annotations

import ast
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.flops import BACKBONES
from tests.conftest import PROMPT_WIDTH, make_pipeline
from tests.documentation.checker import check, parse

import saferedir
from saferedir.cli.common import named_values
from saferedir.guards.saferedir import SafeRedir
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.pipelines.families import FAMILIES
from saferedir.training.saferedir.train_config import TrainConfig

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGES = sorted(EXAMPLES.glob("*.py"))
README = EXAMPLES / "README.md"
COST = ROOT / "docs" / "cost.md"
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def commands_in(text: str) -> Iterator[list[str]]:
    """Words of every `saferedir …` command in a page or table."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for found in re.finditer(r"^ {4}(saferedir .*)$|`(saferedir [^`]*--[^`]*)`", joined, re.MULTILINE):
        yield shlex.split(found[1] or found[2])[1:]


def quoted_costs(hub_id: str) -> dict[str, str]:
    """What docs/cost.md says about a backbone: cost of an image, the guard's share, hours on an A100, GB of roll-outs."""
    name = next(backbone.name for backbone in BACKBONES if backbone.hub_id == hub_id)
    found: dict[str, str] = {}
    columns: list[str] = []
    for line in COST.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "model":
            columns = cells
        elif cells[0] == name and line.startswith("|"):
            found |= dict(zip(columns, cells, strict=True))
    return {
        "image": f"{found['image, TFLOP']} TFLOP", "share": found["share"], "time": f"{found['A100, h']} h",
        "disk": f"{found['disk, GB']} GB",
    }  # fmt: skip


def test_there_is_a_page_for_every_family() -> None:
    assert {page.stem for page in PAGES} == {
        "stable_diffusion_15", "sdxl", "sd3", "flux", "pixart_sigma", "sana", "lumina2", "wan_video",
        "flux_kontext", "flux2_klein", "z_image", "qwen_image",
    }  # fmt: skip
    table = README.read_text(encoding="utf-8")
    assert all(f"]({page.name})" in table for page in PAGES)


@pages
def test_names_and_keywords_exist(page: Path) -> None:
    source = page.read_text(encoding="utf-8")
    compile(source, str(page), "exec")
    assert len(source.splitlines()) < 80
    checker = check(source, runpy.run_path(str(page), run_name="example"))
    assert not checker.problems
    assert {
        "saferedir.attach",
        "saferedir.protect",
        "Attached.decisions",
        "train_saferedir",
        "TrainConfig",
    } <= checker.checked
    assert {"Decision.action", "Decision.to_dict"} <= checker.checked


@pages
def test_commands_are_understood(page: Path) -> None:
    source = page.read_text(encoding="utf-8")
    commands = list(commands_in(ast.get_docstring(ast.parse(source), clean=False) or ""))
    assert [words[:2] for words in commands] == [["pairs", "build"], ["train", "saferedir"]]
    for words in commands:
        parse(words)


@pages
def test_the_commands_and_the_page_train_alike(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's command, the table's and the Python call: the same pairs, concept, folder and settings."""
    example = runpy.run_path(str(page), run_name="example")
    given: dict[str, Any] = {}

    def note(pipe: Any, pairs: Path, out: Path, *, concept: str, config: TrainConfig) -> None:
        given.update(pairs=pairs, out=out, concept=concept, config=config)

    monkeypatch.setitem(example["train"].__globals__, "train_saferedir", note)
    example["train"](None)
    config = given["config"]
    row = next(line for line in README.read_text(encoding="utf-8").splitlines() if f"]({page.name})" in line)
    build, *trainings = [*commands_in(page.read_text(encoding="utf-8")), *commands_in(row)]
    assert len(trainings) == 2
    made = parse(build)
    for words in trainings:
        options = parse(words)
        assert (options["pairs"], options["out"], options["concept"]) == (
            given["pairs"],
            given["out"],
            given["concept"],
        )
        assert (made["out"], made["concept"], made["model"]) == (given["pairs"], given["concept"], options["model"])
        assert options["model"] in (example["HUB_ID"], "models/sana")
        same = ("rollout_batch", "rollouts", "rollout_steps", "steps")
        fields = {"guidance": "guidance_scale", **{name: name for name in same}}
        settings = {name: getattr(config, field) for name, field in fields.items()}
        left_out = {name: getattr(TrainConfig(), field) for name, field in fields.items() if options[name] is None}
        assert {**{name: options[name] for name in settings}, **left_out} == settings and options["dtype"] == "bfloat16"
        assert named_values(options["call"], "--call") == config.call
        assert config.held_out_rollouts in (max(2, round(0.65 * config.rollouts)), TrainConfig.held_out_rollouts)


def test_below_their_own_lines_the_pages_of_images_are_alike() -> None:
    endings = {
        page.read_text(encoding="utf-8").partition("def train(")[2]
        for page in PAGES
        if page.stem not in ("wan_video", "flux_kontext", "qwen_image")  # videos, an input image, a negative prompt
    }
    assert len(endings) == 1


def test_a_page_runs_on_a_tiny_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Stable Diffusion page from top to bottom, with random weights and a random guard that always fires."""
    main = runpy.run_path(str(EXAMPLES / "stable_diffusion_15.py"), run_name="example")["main"]
    torch.manual_seed(0)
    network = {"prompt_dim": PROMPT_WIDTH, "concepts": ["umbrella"]}
    config = SafeRedirConfig(concept="umbrella", network=network, prompt_threshold=-1e6, image_threshold=1e6)
    guard = SafeRedir(config).save_pretrained(tmp_path / "guard")
    monkeypatch.setitem(main.__globals__, "load", make_pipeline)
    monkeypatch.setitem(main.__globals__, "GUARD", guard)
    monkeypatch.setitem(main.__globals__, "SIZE", {})
    monkeypatch.chdir(tmp_path)
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["redirected", "redirected", "False", "False"]
    assert {path.name for path in tmp_path.glob("*.png")} == {"0.png", "1.png"}


@pages
def test_pipeline_is_a_supported_family(page: Path) -> None:
    hub_id = runpy.run_path(str(page), run_name="example")["HUB_ID"]
    pipeline = next(backbone.pipeline for backbone in BACKBONES if backbone.hub_id == hub_id)
    assert any(pipeline in family.pipelines for family in FAMILIES.values())


@pages
def test_page_and_table_quote_the_counted_cost(page: Path) -> None:
    head = " ".join((ast.get_docstring(ast.parse(page.read_text(encoding="utf-8"))) or "").split())
    row = next(line for line in README.read_text(encoding="utf-8").splitlines() if f"]({page.name})" in line)
    hub_id = runpy.run_path(str(page), run_name="example")["HUB_ID"]
    assert f"`{hub_id}`" in row
    assert "has NOT been run" in head
    costs = quoted_costs(hub_id)
    assert all(f" {value} " in row for value in costs.values())
    assert all(re.search(rf" {re.escape(value)}\b|{re.escape(value)} of it", head) for value in costs.values())


def test_commands_of_the_table_are_understood() -> None:
    commands = list(commands_in(README.read_text(encoding="utf-8")))
    assert len(commands) == len(PAGES)
    for words in commands:
        parse(words)


@pytest.mark.parametrize(
    "line",
    [
        "saferedir.no_such_name",
        "saferedir.attach(1, 2, strength=3)",
        "saferedir.load_pipeline()",
        "TrainConfig(no_such_field=1)",
        "with saferedir.attach(1, 2) as attached: attached.no_such_name",
        "for d in attached.decisions: d.no_such_name",
    ],
)
def test_the_checker_sees_mistakes(line: str) -> None:
    assert check(line, {"saferedir": saferedir, "TrainConfig": TrainConfig}).problems


@pytest.mark.parametrize(
    "line",
    [
        "saferedir paint --out x",
        "saferedir train saferedir --concept star",
        "saferedir train saferedir --pairs x --concept star --out y --no-such-option 1",
    ],
)
def test_the_parser_sees_mistakes(line: str) -> None:
    with pytest.raises(Exception, match=r"no command|[Mm]issing|[Nn]o such option"):
        parse(next(commands_in(f"    {line}")))
