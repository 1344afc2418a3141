"""The quality report: complete, its page says plainly what misses its bar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tools.pictoworld.report import ReportConfig, bars, quality_report
from tools.pictoworld.report_page import page

from saferedir import load_pipeline
from saferedir.pictoworld.evaluation import load_judge
from saferedir.pictoworld.judge import Judge


@pytest.fixture(scope="module")
def world() -> Any:
    return load_pipeline("pictoworld")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


def test_quality_report_is_complete(world: Any, judge: Judge, tmp_path: Path) -> None:
    config = ReportConfig(concept_images=2, judge_images=60, template_images=2, steps=2)
    report = quality_report(world, judge, 4, tmp_path, config=config)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert len(report["bars"]) == 4 + 1 + 1 + 3 * 4 + 5
    counts = torch.tensor(report["judge"]["confusion"]["shape"]["counts"])
    assert int(counts.sum()) == 60
    text = (tmp_path / "pictoworld.md").read_text()
    assert "seed 777000001" in text and "| bar | measured |" in text
    assert (tmp_path / "pictoworld.png").stat().st_size > 1000
    for row in report["bars"]:
        row["measured"], row["met"] = {**row["measured"], "rate": 0.0}, False
    assert f"**{len(report['bars'])} of {len(report['bars'])} bars are missed" in page(report)


def test_a_bar_for_broken_images_is_an_upper_one() -> None:
    good = {"rate": 1.0, "n": 1, "low": 0.2, "high": 1.0}
    names = ("shape", "colour", "background", "style", "position", "all four", "broken")
    rows = bars(
        {"model": dict.fromkeys(names, good), "concepts": {}, "judge": {"renders": dict.fromkeys(names[:5], good)}}
    )
    assert [row["what"] for row in rows if not row["met"]] == ["broken"]
