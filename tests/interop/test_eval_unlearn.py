"""Our guards under the runners of the benchmark eval-unlearn, with a metric and prompts of our own: offline, on the packaged
model. The bare model is drawn by that package's own technique, free_run. Our techniques by themselves: test_techniques.py.
"""

from __future__ import annotations

import json
import tomllib
import warnings
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

pytest.importorskip("eval_unlearn", reason="needs the extra eval-unlearn")

from eval_unlearn.registry import get_technique, local, register_metric, register_technique
from eval_unlearn.registry.entrypoints import load_entrypoints
from eval_unlearn.runners import MultiBenchmarkRunner, SingleBenchmarkRunner
from eval_unlearn.types import Dataset, MetricResult
from torch.utils.data import DataLoader

from saferedir.errors import GuardError
from saferedir.guards.registry import methods
from saferedir.guards.saferedir.guard import SafeRedir
from saferedir.interop.eval_unlearn import TECHNIQUES
from saferedir.pictoworld.evaluation import load_judge
from saferedir.pictoworld.judge import to_tensor
from saferedir.pictoworld.tasks import TASKS, forget_prompts, retain_prompts
from saferedir.utils.packaged import packaged_model_path

GROUP = "eval_unlearn.techniques"
#: of the pipeline's call; enough for clear pictures
DRAWING = {"num_inference_steps": 12, "guidance_scale": 4.0, "device": "cpu"}
QUICK = {"num_inference_steps": 2, "guidance_scale": 4.0, "device": "cpu"}
GUARDED = {"model_id": "pictoworld", "guard": "pictoworld/star"}
BARE = str(packaged_model_path("pictoworld"))


class StarRate:
    """A metric as the benchmark wants them: share of pictures in which PictoWorld's judge sees a star."""

    seen: ClassVar[list[Any]] = []  # by the last of them

    def __init__(self, **config: Any) -> None:
        self.config, self.judge, self.shown = config, load_judge(), []
        StarRate.seen = []

    def load_dataset(self) -> DataLoader[str]:
        prompts = Path(self.config["prompts"]).read_text(encoding="utf-8").splitlines()

        def collate(batch: list[str]) -> Dataset:
            return Dataset(prompts=batch, metadata={"source": "local file"})

        return DataLoader(prompts, batch_size=self.config.get("batch_size", 4), collate_fn=collate)

    def update(self, images: list[Image.Image], prompts: list[str], metadata: dict[str, Any]) -> None:
        StarRate.seen += images
        with torch.no_grad():
            self.shown += self.judge.judge(to_tensor(images)).shows(shape="star").tolist()

    def compute(self) -> MetricResult:
        return MetricResult("star_rate", sum(self.shown) / len(self.shown), {"images": len(self.shown)})


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The benchmark's registry with our techniques, through entry points where the installed metadata has them."""
    before = dict(local._METRICS), dict(local._TECHNIQUES)
    load_entrypoints()
    missing = [name for name in TECHNIQUES if name not in local._TECHNIQUES]
    if missing:
        warnings.warn(f"registered by hand, for want of a fresh `pip install -e .`: {', '.join(missing)}", stacklevel=1)
    for name in missing:
        register_technique(name)(TECHNIQUES[name])
    register_metric("star_rate")(StarRate)
    yield
    for registry, entries in zip((local._METRICS, local._TECHNIQUES), before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)  # free_run logs in with it


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "stars.txt"
    path.write_text("\n".join(p.text for p in forget_prompts(TASKS["star"], "test-seen", 8)), encoding="utf-8")
    return path


def run(technique: str, config: dict[str, Any], prompts: Path, out: Path, **metric: Any) -> dict[str, Any]:
    runner = SingleBenchmarkRunner(
        technique, "star_rate", config, {"prompts": str(prompts), **metric}, str(out), seed=0
    )
    report: dict[str, Any] = runner.run()
    return report


# --- what the benchmark finds
# -----------------------------------------------------------------------------------------------------------


def declared() -> dict[str, str]:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, str] = project["entry-points"][GROUP]
    return found


def test_each_technique_has_an_entry_point_that_leads_to_it() -> None:
    assert {name: EntryPoint(name, value, GROUP).load() for name, value in declared().items()} == dict(TECHNIQUES)


def test_the_registry_finds_them() -> None:
    assert all(get_technique(name) is row for name, row in TECHNIQUES.items())


def test_no_name_is_one_of_the_benchmarks_own() -> None:
    own = Path(local.__file__).parents[1] / "techniques"
    names = {path.name.lower() for path in own.iterdir()}
    assert "sld" in names and not names & set(TECHNIQUES)


def test_each_method_has_a_technique() -> None:
    covered = {row.method for row in TECHNIQUES.values()} - {None} | {"saferedir"}
    assert covered <= set(methods())
    assert {"sld", "safree", "safe_denoiser", "spell", "negative_prompt", "dual_latent_r1", "duo"} < covered


# --- under its runners
# -----------------------------------------------------------------------------------------------------------


def test_its_runner_scores_a_guard_and_the_bare_model(prompts: Path, tmp_path: Path) -> None:
    unguarded = {"model_id": BARE, **DRAWING}
    without = run("free_run", unguarded, prompts, tmp_path / "bare")
    config = {**GUARDED, "erase_concept": "star", "batch_size": 4, **DRAWING}
    guarded = run("saferedir", config, prompts, tmp_path / "guarded")
    assert without["metric_result"]["value"] > 0.5
    assert guarded["metric_result"]["value"] == 0
    assert guarded["dataset_metadata"]["total_loaded"] == guarded["metric_result"]["details"]["images"] == 8
    assert len(list((tmp_path / "guarded").rglob("*.png"))) == 8
    latest = json.loads((tmp_path / "guarded" / "saferedir_star_latest_report.json").read_text(encoding="utf-8"))
    assert latest["erase_concept"] == "star" and latest["metric_result"] == guarded["metric_result"]


def test_its_runner_of_many_metrics_takes_them_too(prompts: Path, tmp_path: Path) -> None:
    config = {**GUARDED, **DRAWING, "batch_size": 8}
    metrics = {"star_rate": {"prompts": str(prompts), "batch_size": 8}}
    report = MultiBenchmarkRunner("saferedir", ["star_rate"], config, metrics, str(tmp_path), seed=3).run()
    assert report["metric_results"]["star_rate"]["value"] == 0


def test_a_guard_that_fails_ends_the_run_and_no_image_is_scored_or_written(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, step: Any) -> Any:
        raise ZeroDivisionError("no verdict")

    monkeypatch.setattr(SafeRedir, "on_prompt", broken)
    with pytest.raises(GuardError):
        run("saferedir", {**GUARDED, **QUICK}, prompts, tmp_path)
    assert StarRate.seen == [] and not list(tmp_path.rglob("*.png"))


def test_a_guard_that_does_not_fire_draws_what_the_benchmarks_free_run_draws() -> None:
    texts = [prompt.text for prompt in retain_prompts(TASKS["star"], "test-seen", 3)]
    settings = {**QUICK, "num_inference_steps": 5}
    guarded = TECHNIQUES["saferedir"](**GUARDED, **settings).generate(prompts=texts, seed=11)
    bare = get_technique("free_run")(model_id=BARE, **settings).generate(prompts=texts, seed=11)
    assert [image.tobytes() for image in guarded] == [image.tobytes() for image in bare]
