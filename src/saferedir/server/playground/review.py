"""What is wrong with an image: a report of it, and the review queue with its training. Only where Gradio is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from pydantic import ValidationError

from saferedir.errors import SaferedirError
from saferedir.server.api.reports import file_report
from saferedir.server.api.schemas import ReportRequest
from saferedir.server.api.service import Service
from saferedir.server.errors import ServerError
from saferedir.server.keys import Caller
from saferedir.server.playground.fragments import reports_html, versions_html
from saferedir.server.playground.trial import Trial
from saferedir.server.reports.jobs import Job
from saferedir.server.reports.store import ReportRow, ReportStore
from saferedir.utils.progress import Progress

PROBLEMS = [
    ("The concept is in the image", "missed"),
    ("It was refused or changed without reason", "false_alarm"),
    ("Something else", "other"),
]
NOT_ALLOWED = "Your key may not review reports."
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
WhoAsks = Callable[[gr.Request], Caller]


def add_report_form(service: Service, trial: gr.State, caller_of: WhoAsks) -> gr.Dropdown:
    """Beneath the image: what is wrong with it; the field for the concept, which follows the image."""
    concepts = sorted({name.rpartition("/")[2] for model in service.settings.models for name in model.guard_names})
    with gr.Accordion("Something is wrong with this image", open=False, elem_id="report"):
        gr.Markdown("A reviewer will read it. Accepted reports become training prompts for the guard.")
        with gr.Row():
            problem = gr.Radio(PROBLEMS, value="missed", label="What is wrong")
            concept = gr.Dropdown(concepts, value=concepts[0], label="Concept", allow_custom_value=True)
        note = gr.Textbox(label="Note", lines=1, max_length=4000)
        send = gr.Button("Report", elem_id="send-report")
        answer = gr.Markdown("", elem_id="report-status")

    def report(trial: Trial | None, problem: str, concept: str, note: str, request: gr.Request) -> str:
        if trial is None or not trial.image_id:
            return "Generate an image first."
        fields = {
            "image_id": trial.image_id,
            "problem": problem,
            "concept": concept,
            "note": note,
            "prompt": trial.prompt,
        }
        try:
            body = ReportRequest.model_validate(fields)
            row = file_report(ReportStore(service.audit.store), caller_of(request), body)
        except (SaferedirError, ValidationError) as error:
            return f"**Not reported.** {_sentence(error)}"
        return f"**Thank you.** Report {row.id[:12]} waits for a reviewer."

    send.click(report, [trial, problem, concept, note], answer, **_PRIVATE)
    return concept


def add_review_tab(service: Service, page: gr.Blocks, caller_of: WhoAsks) -> None:
    """The queue, the pairs that are made of it, a training that can be stopped, and the versions so far."""
    job = Job()
    with gr.Tab("Review", id="review") as tab:
        gr.Markdown(
            "Reports that wait, the oldest first. Accept one with the same wish without the concept, and it becomes a pair of "
            "training prompts; then train the guard anew, and compare it before and after."
        )
        queue = gr.HTML("", elem_id="queue")
        chosen = gr.Dropdown([], label="Report", elem_id="chosen")
        with gr.Row():
            unsafe = gr.Textbox(label="Prompt that asks for the concept", elem_id="unsafe")
            safe = gr.Textbox(label="The same without it (of a false alarm: the prompt itself)", elem_id="safe")
        with gr.Row():
            accept = gr.Button("Accept", variant="primary", elem_id="accept")
            reject = gr.Button("Reject", elem_id="reject")
        status = gr.Markdown("", elem_id="review-status")
        gr.Markdown("### Train anew")
        with gr.Row():
            concept = gr.Dropdown([], label="Concept with accepted reports", elem_id="retrain-concept")
            start = gr.Button("Train and measure", elem_id="retrain")
            stop = gr.Button("Stop", elem_id="stop")
        progress = gr.Markdown("", elem_id="progress")
        versions = gr.HTML("", elem_id="versions")
        timer = gr.Timer(2.0, active=False)

    def store() -> ReportStore:
        return ReportStore(service.audit.store)

    def show(request: gr.Request) -> list[Any]:
        if not caller_of(request).may_review:
            return [f"<p>{NOT_ALLOWED}</p>", _choices([]), _choices([]), "", ""]
        rows = store().reports(status="open")
        names = [(f"{row.id[:12]}  {row.concept}: {row.prompt or 'unknown prompt'}", row.id) for row in rows]
        concepts = sorted({row.concept for row in store().reports(status="accepted")})
        return [
            reports_html(rows),
            _choices(names),
            _choices(concepts),
            job.status.sentence,
            versions_html(store().versions()),
        ]

    def fill(report_id: str | None, request: gr.Request) -> list[str]:
        if not report_id or not caller_of(request).may_review:
            return ["", ""]
        row = store().report(report_id)
        return ["", row.prompt] if row.problem == "false_alarm" else [row.prompt, row.prompt]

    def decide(report_id: str | None, act: Callable[[str, str], ReportRow], request: gr.Request) -> str:
        caller = caller_of(request)
        if not caller.may_review:
            return f"**Not done.** {NOT_ALLOWED}"
        try:
            if not report_id:
                raise ServerError("choose a report first.")
            row = act(report_id, caller.name)
        except ServerError as error:
            return f"**Not done.** {_sentence(error)}"
        return f"Report {row.id[:12]} is {row.status}."

    def accepted(report_id: str | None, unsafe: str, safe: str, request: gr.Request) -> list[Any]:
        sentence = decide(
            report_id, lambda name, who: store().accept(name, who, safe=safe, unsafe=unsafe or None), request
        )
        return [sentence, *show(request)]

    def rejected(report_id: str | None, request: gr.Request) -> list[Any]:
        return [decide(report_id, lambda name, who: store().reject(name, who), request), *show(request)]

    def begin(concept: str | None, request: gr.Request) -> list[Any]:
        if not caller_of(request).may_review:
            return [NOT_ALLOWED, gr.Timer(active=False)]
        if not concept:
            return ["Accept a report first, then choose its concept.", gr.Timer(active=False)]
        began = job.start(lambda bars: _retrained(service, concept, bars))
        return [job.status.sentence if began else "A training runs already.", gr.Timer(active=True)]

    def end(request: gr.Request) -> str:
        if not caller_of(request).may_review:
            return NOT_ALLOWED
        job.stop(5.0)
        return job.status.sentence

    def watch(request: gr.Request) -> list[Any]:
        if not caller_of(request).may_review:
            return [NOT_ALLOWED, "", gr.Timer(active=False)]
        return [job.status.sentence, versions_html(store().versions()), gr.Timer(active=job.status.state == "running")]

    shown = [queue, chosen, concept, progress, versions]
    gr.on([tab.select, page.load], show, None, shown, **_PRIVATE)
    chosen.change(fill, chosen, [unsafe, safe], **_PRIVATE)
    accept.click(accepted, [chosen, unsafe, safe], [status, *shown], **_PRIVATE)
    reject.click(rejected, chosen, [status, *shown], **_PRIVATE)
    start.click(begin, concept, [progress, timer], **_PRIVATE)
    stop.click(end, None, progress, **_PRIVATE)
    timer.tick(watch, None, [progress, versions, timer], show_progress="hidden", **_PRIVATE)


def _retrained(service: Service, concept: str, progress: Progress) -> dict[str, Any]:
    from saferedir.server.reports.retrain import make_plan, retrain

    store = ReportStore(service.audit.store)
    return retrain(make_plan(service.settings, store, concept), store, progress)


def _choices(choices: list[Any]) -> Any:
    first = choices[0] if choices else None
    return gr.Dropdown(choices, value=first[1] if isinstance(first, tuple) else first)


def _sentence(error: Exception) -> str:
    text = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error)
    return f"{text[:1].upper()}{text[1:]}"
