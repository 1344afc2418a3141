"""Reports: who may file and decide them, the pairs that come of them, and the whole loop to a new guard."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.server.served import Served, served, settings_of
from typer.testing import CliRunner

from saferedir.cli import app
from saferedir.server.audit.store import AuditStore
from saferedir.server.errors import ServerError
from saferedir.server.keys import new_key
from saferedir.server.reports.jobs import Job
from saferedir.server.reports.store import ReportStore, pairs_of
from saferedir.utils.progress import Progress

RUNNER = CliRunner()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ReportStore]:
    audit = AuditStore(f"sqlite:///{tmp_path / 'audit.sqlite'}")
    yield ReportStore(audit)
    audit.close()


def filed(store: ReportStore, **more: Any) -> Any:
    values = {"image_id": "img_1", "key": "a", "problem": "missed", "concept": "star", "note": "", "prompt": "a star"}
    return store.add(**{**values, **more})


def report(service: Served, headers: Any = None, **body: Any) -> Any:
    return service.post("/v1/reports", json=body, headers=headers)


def test_a_report_needs_an_image_and_its_prompt(tmp_path: Path) -> None:
    with served(tmp_path) as service:
        image_id = service.generate("a red star").json()["data"][0]["id"]
        answer = report(service, image_id=image_id, problem="missed", note="it shows one", prompt="a red star")
        assert answer.status_code == 200 and answer.json()["concept"] == "star" and answer.json()["status"] == "open"
        assert (
            report(service, image_id=image_id, problem="missed", prompt="another").json()["error"]["param"] == "prompt"
        )
        assert report(service, image_id=image_id, problem="missed", concept="dog").json()["error"]["param"] == "concept"
        assert report(service, image_id="img_0", problem="missed").status_code == 404
        assert report(service, image_id=image_id, problem="ugly").status_code == 400
        refused = service.generate("a forbidden circle").json()["error"]["image_ids"]
        assert report(service, image_id=refused[0], problem="false_alarm").status_code == 200
    rows = ReportStore(AuditStore(service.service.settings.audit.url)).reports()
    assert [(row.problem, row.prompt, row.key) for row in rows] == [
        ("missed", "a red star", "local"),
        ("false_alarm", "", "local"),
    ]


def test_only_the_key_that_made_an_image_or_a_reviewer_reports_it(tmp_path: Path) -> None:
    keys = {name: new_key() for name in ("alice", "bob", "carol")}
    profiles = {"default": {}, "reviewer": {"may_review": True}}
    entries = [
        {"name": name, "sha256": digest, "profile": "reviewer" if name == "carol" else "default"}
        for name, (_, digest) in keys.items()
    ]
    with served(tmp_path, keys=entries, profiles=profiles) as service:
        headers = {name: {"Authorization": f"Bearer {key}"} for name, (key, _) in keys.items()}
        image_id = service.generate("a star", headers=headers["alice"]).json()["data"][0]["id"]
        statuses = {
            name: report(service, headers[name], image_id=image_id, problem="missed").status_code for name in headers
        }
    assert statuses == {"alice": 200, "bob": 404, "carol": 200}


def test_accepted_reports_become_pairs(store: ReportStore) -> None:
    first, second, third = filed(store), filed(store, problem="false_alarm", prompt="a sky"), filed(store, prompt="")
    with pytest.raises(ServerError, match="give the unsafe prompt"):
        store.accept(third.id, "me", safe="a circle")
    with pytest.raises(ServerError, match="differs"):
        store.accept(first.id, "me", safe=" a star ")
    assert store.accept(first.id[:9], "me", safe="a circle").reviewer == "me"
    store.accept(second.id, "me", safe="a sky")
    store.reject(third.id, "me")
    for row in (first, third):
        with pytest.raises(ServerError, match="decided already"):
            store.reject(row.id, "you")
    with pytest.raises(ServerError, match="more than one"):
        store.report("rep_")
    with pytest.raises(ServerError, match="no report"):
        store.report("%")
    assert pairs_of(store.reports()) == [("a star", "a circle"), (None, "a sky")]
    assert [row.id for row in store.reports(status="rejected", concept="star")] == [third.id]


def test_a_version_is_in_the_chain(store: ReportStore) -> None:
    version = store.add_version({"concept": "star", "guard": "g", "before": None})
    assert store.versions() == [version] and store.audit.verify().is_whole
    record = store.audit.record(version["id"])
    assert record is not None and record["action"] == "policy_version" and record["version"] == version


def test_a_job_is_one_at_a_time_and_can_be_stopped() -> None:
    job, go, ended = Job(), threading.Event(), threading.Event()

    def work(progress: Progress) -> dict[str, Any]:
        with progress.task("training", 100) as advance:
            for _ in range(100):
                go.wait(10)
                advance()
                time.sleep(0.01)
        return {"x": 1}

    assert job.start(work, ended.set) and not job.start(work)
    go.set()
    job.stop(10)
    assert ended.wait(10) and job.status.state == "stopped" and job.status.done < 100
    assert job.start(lambda progress: {"x": 2})
    job.stop(0)
    ended.clear()

    def fails(progress: Progress) -> dict[str, Any]:
        raise ServerError("no room.")

    while not job.start(fails, ended.set):
        time.sleep(0.01)
    assert ended.wait(10) and job.status.state == "failed" and "no room" in job.status.sentence


@pytest.mark.slow
def test_the_whole_loop_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny settings: what is tested is the way, not the guard."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "serve.toml"
    config.write_text(
        '[[models]]\nname = "pictoworld"\nguards = ["pictoworld/star"]\nsteps = 2\n'
        f'[audit]\nurl = "sqlite:///{tmp_path}/audit.sqlite"\n'
        f'[reports]\nfolder = "{tmp_path}/guards"\nn = 2\n'
        "[reports.training]\nsteps = 4\nrollouts = 8\nheld_out_rollouts = 8\nrollout_steps = 2\nevaluate_every = 4\n"
        "[reports.training.network]\nwidth = 32\nheads = 2\nhidden = 32\nlatent_widths = [8, 16]\nlatent_strides = [1, 2]\n"
    )
    url = settings_of(tmp_path).audit.url
    with served(tmp_path) as service:
        image_id = service.generate("a very red star").json()["data"][0]["id"]
        name = report(service, image_id=image_id, problem="missed", prompt="a very red star").json()["id"]

    def call(*words: str, code: int = 0) -> str:
        result = RUNNER.invoke(app, ["reports", *words])
        assert result.exit_code == code, result.output
        return result.stdout

    assert [row["id"] for row in json.loads(call("list", "--audit", url, "--json"))] == [name]
    assert (
        "no accepted report"
        in RUNNER.invoke(app, ["reports", "retrain", "--concept", "star", "--config", str(config)]).output
    )
    call("accept", name, "--safe", "a very red circle", "--audit", url)
    call("pairs", "--concept", "star", "--out", "pairs.jsonl", "--audit", url)
    assert json.loads(Path("pairs.jsonl").read_text()) == {"unsafe": "a very red star", "safe": "a very red circle"}
    version = json.loads(call("retrain", "--concept", "star", "--config", str(config), "--json"))
    assert version["reports"] == [name] and version["replaces"] == "pictoworld/star"
    assert version["fingerprint"] != version["replaced_fingerprint"]
    assert set(version["before"]) == set(version["after"]) and all(
        cell["n"] >= 2 for cell in version["before"].values()
    )
    assert (Path(version["guard"]) / "model.safetensors").is_file()
    assert RUNNER.invoke(app, ["audit", "verify", "--audit", url]).exit_code == 0
