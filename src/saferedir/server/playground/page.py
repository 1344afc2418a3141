"""The page's layout and what its buttons do, in Gradio's words. Imported only where Gradio is there (`mounting`)."""

from __future__ import annotations

import json
import logging
import secrets
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import ValidationError

from saferedir.server.api.information import allowed
from saferedir.server.api.service import Service
from saferedir.server.errors import ApiError
from saferedir.server.keys import Caller
from saferedir.server.playground.bench_report import ROUTE
from saferedir.server.playground.choices import ALL, STRICTEST, policy_choices, score_choices
from saferedir.server.playground.fragments import (
    GalleryItem,
    base64_text,
    decision_of,
    gallery_html,
    legend_html,
    pair_html,
    strip_html,
    verdicts_html,
)
from saferedir.server.playground.review import add_report_form, add_review_tab
from saferedir.server.playground.timeline import COLUMNS, as_frame, colours_of, timeline
from saferedir.server.playground.trial import Trial, try_prompt

logger = logging.getLogger("saferedir.server")
CSS = Path(__file__).with_name("page.css")
MAX_SEED = 2**32 - 1
INTRO = """# saferedir
Type a prompt. Guards watch it while the image is made, and steer away from what they keep out. You see the image without and with
them from the same noise, which words were moved, and what every guard scored at every step."""


def caller_of(request: gr.Request) -> Caller:
    """Whom the gate has found for a Gradio event."""
    caller: Caller = request.request.scope["state"]["caller"]
    return caller


def build_page(service: Service) -> gr.Blocks:
    """The Blocks of the page."""
    settings = service.settings
    models = [model.name for model in settings.models]
    may_be_bare = any(settings.allows_unguarded(model) for model in settings.models)
    choices, info = policy_choices(settings.models[0])

    with gr.Blocks(title="saferedir playground", analytics_enabled=False) as page:
        trial, items = gr.State(None), gr.State([])
        gr.Markdown(INTRO)
        with gr.Tabs():
            with gr.Tab("Try", id="try"):
                with gr.Row():
                    prompt = gr.Textbox(
                        label="Prompt", placeholder="a red star over the sky", lines=1, max_lines=3, scale=4,
                        elem_id="prompt", max_length=settings.limits.prompt,
                    )  # fmt: skip
                    button = gr.Button("Generate", variant="primary", scale=1, elem_id="generate")
                with gr.Accordion("Settings", open=False):
                    with gr.Row():
                        model = gr.Dropdown(models, value=models[0], label="Model, with its guards")
                        policy = gr.Dropdown(choices, value=STRICTEST, label="Policy", info=info)
                        guard = gr.Dropdown(
                            score_choices(settings.models), value=ALL, label="Show tokens and scores of"
                        )
                    with gr.Row():
                        seed = gr.Number(0, label="Seed of the noise", precision=0, minimum=0, maximum=MAX_SEED)
                        other = gr.Button("Another seed", size="sm")
                        bare = gr.Checkbox(
                            may_be_bare, label="Also without guards", interactive=may_be_bare,
                            info="" if may_be_bare else "The configuration does not allow it.",
                        )  # fmt: skip
                status = gr.Markdown("", elem_id="status")
                images = gr.HTML("", elem_id="images")
                strip = gr.HTML("", elem_id="tokens")
                verdicts = gr.HTML("", elem_id="verdicts")
                plot = gr.LinePlot(
                    as_frame([]), x=COLUMNS[0], y=COLUMNS[1], color=COLUMNS[2], title="Scores by step; above 0 a guard acts",
                    height=300, visible=False, elem_id="timeline", colors_in_legend=[],
                )  # fmt: skip
                legend = gr.HTML("", elem_id="series")
                with gr.Accordion("Everything that was decided (the audit record)", open=False):
                    record = gr.Code("{}", language="json", label="Record", elem_id="record", interactive=False)
                concept = add_report_form(service, trial, caller_of)
            add_review_tab(service, page, caller_of)
            with gr.Tab("Gallery", id="gallery"):
                shown = gr.HTML(gallery_html([]), elem_id="gallery")
            with gr.Tab("Bench", id="bench"):
                gr.Markdown("The latest bench report: every guard against every attack, with intervals.")
                gr.HTML(
                    f'<iframe class="sr-report" src="{ROUTE}" title="the latest bench report" loading="lazy"></iframe>'
                )

        async def generate(
            prompt: str, model: str, policy: str, guard: str, seed: float, bare: bool, items: list[GalleryItem],
            request: gr.Request,
        ) -> Any:  # fmt: skip
            result, sentence = await _tried(service, caller_of(request), prompt, int(seed or 0), model, policy, bare)
            if result is None:
                return [sentence, *[gr.skip()] * 10]
            items = [GalleryItem(result.prompt, base64_text(result.guarded)), *items][: settings.playground.gallery]
            return [
                sentence, pair_html(result), *_of_guard(result, guard), verdicts_html(result.decisions),
                json.dumps(result.record, indent=1), result, items, gallery_html(items), _concept_of(result),
            ]  # fmt: skip

        def choose(trial: Trial | None, guard: str) -> Any:
            return [gr.skip()] * 3 if trial is None else _of_guard(trial, guard)

        def of_model(name: str) -> Any:
            chosen = next(entry for entry in settings.models if entry.name == name)
            choices, info = policy_choices(chosen)
            return gr.Dropdown(choices, value=STRICTEST, info=info), gr.Dropdown(score_choices([chosen]), value=ALL)

        inputs = [prompt, model, policy, guard, seed, bare, items]
        outputs = [status, images, strip, plot, legend, verdicts, record, trial, items, shown, concept]
        private = {"api_visibility": "private"}
        gr.on([prompt.submit, button.click], generate, inputs, outputs, show_progress_on=[images], **private)
        model.change(of_model, model, [policy, guard], **private)
        guard.change(choose, [trial, guard], [strip, plot, legend], **private)
        other.click(lambda: secrets.randbelow(MAX_SEED), None, seed, **private)
    page.queue(default_concurrency_limit=16, max_size=64)
    return page


async def _tried(
    service: Service, caller: Caller, prompt: str, seed: int, model: str, policy: str, bare: bool
) -> tuple[Trial | None, str]:
    """A trial and a sentence on it; None where there is none."""
    if not prompt.strip():
        return None, "Type a prompt first."
    chosen: Any = None if policy == STRICTEST else policy
    try:
        named = next((entry for entry in allowed(service, caller) if entry.name == model), None)
        is_bare = bare and named is not None and service.settings.allows_unguarded(named)
        trial = await try_prompt(service, caller, prompt, seed, model=model, policy=chosen, bare=is_bare)
    except ApiError as error:
        return None, f"**Nothing is shown.** {error}"
    except ValidationError as error:
        return None, f"**Nothing is shown.** The prompt cannot be used: {error.errors()[0]['msg']}."
    except Exception as error:  # Gradio would print its message, which may repeat the prompt
        logger.error("a trial failed: %s", type(error).__name__)
        return None, f"**Nothing is shown.** It failed ({type(error).__name__})."
    return trial, _sentence(trial)


def _sentence(trial: Trial) -> str:
    if trial.refusal:
        return f"**Refused.** {trial.refusal}"
    acting = [decision for decision in trial.decisions if decision.fired]
    if not acting:
        return "**No guard acted**: the image is what the model makes by itself, bit for bit."
    names = ", ".join(sorted({decision.concept for decision in acting}))
    first = min(decision.first_fired_step or 0 for decision in acting)
    return f"**Redirected** away from {names}, from step {first} on."


def _of_guard(trial: Trial, guard: str) -> list[Any]:
    """Strip, plot and its legend of one guard; of all: the strip of the one that acts most, the scores of every one."""
    name = "" if guard == ALL else guard
    rows = timeline(trial.decisions, name if decision_of(trial.decisions, name) else "")
    colours = colours_of(rows)
    plot = gr.LinePlot(as_frame(rows), visible=bool(rows), color_map=colours, colors_in_legend=[])
    return [strip_html(trial, name), plot, legend_html(colours)]


def _concept_of(trial: Trial) -> Any:
    """What a report of the image is on, unless its writer says otherwise: the concept of the guard that acted most."""
    decision = decision_of(trial.decisions, "")
    concepts = sorted({each.concept for each in trial.decisions})
    return gr.Dropdown(concepts, value=decision.concept) if decision is not None else gr.skip()


__all__ = ["CSS", "build_page", "caller_of"]
