"""What guards do in one to eight steps, with and without guidance; writes docs/few-steps.md and docs/few-steps.json.

Run: python benchmarks/few_steps.py --out docs
Per task, setting (model, scheduler, guidance) and number of steps: how many of n images for prompts that ask for the concept
show it, and how many of n other prompts' images are the unguarded ones bit for bit. The packaged model is run faster than it
was made for, so look at what breaks without a guard first; a LoRA of `python -m tools.pictoworld few-steps` can be given as
--lora. Each cell is kept in --work as soon as it is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from rich.progress import Progress

import saferedir as sr
from saferedir.errors import GuardError
from saferedir.guards.base import Guard
from saferedir.guards.saferedir import SafeRedir
from saferedir.guards.storage import find_guard
from saferedir.pictoworld.evaluation import (
    cell,
    concept_rate,
    generate,
    guard_digest,
    identical,
    images_kept,
    load_judge,
    rate_of,
)
from saferedir.pictoworld.methods import METHODS, make_guards
from saferedir.pictoworld.tasks import TASKS, Task, forget_prompts, retain_prompts
from saferedir.pictoworld.template_judge import TemplateJudge
from saferedir.utils.files import replacing
from saferedir.utils.packaged import LORA_FILE, packaged_lora_path

STEPS = (1, 2, 4, 8)
#: how a method that acts through guidance begins its refusal of a call without it
NEEDS_GUIDANCE = "works through classifier-free guidance"
DISTILLED = "pictoworld-few-steps"
HEAD = """# Few steps

Made by `python benchmarks/few_steps.py --out docs`: {n} prompts of test-seen and as many retain prompts a cell, the same noise
with and without a guard, each rate with its 95 % Wilson interval. The packaged model in fewer steps than it was made for:
without a guard it shows what is asked for from two steps on. `pictoworld-few-steps`, where it stands, is the same model with a
LoRA distilled for few steps.

- **concept**: images that show the concept and are not broken, by the CNN; a method that needs guidance is refused without it
  (no image), which the tables show as "refused".
- **others**: retain prompts. SafeRedir's rows count images that are the unguarded ones bit for bit, the other methods' rows
  images that keep all attributes that were right without the guard.

"""


class Setting(NamedTuple):
    """One way to sample: LoRA or none, a diffusers scheduler, a guidance scale."""

    model: str
    scheduler: str
    guidance: float

    @property
    def name(self) -> str:
        """As the page has it."""
        return f"{self.model}, {self.scheduler.removesuffix('Scheduler')}, guidance {self.guidance:g}"


SETTINGS = (
    Setting(DISTILLED, "LCMScheduler", 1.0),
    Setting(DISTILLED, "TCDScheduler", 1.0),
    *(
        Setting("pictoworld", f"{scheduler}Scheduler", guidance)
        for scheduler in ("DDIM", "EulerDiscrete", "LCM", "TCD", "DPMSolverMultistep")
        for guidance in (1.0, 4.0)
    ),
)
VARIANTS: dict[str, dict[str, Any]] = {
    "saferedir": {},
    "saferedir, prompt verdict alone": {"use_image": False},
    "saferedir, image verdict alone": {"use_prompt": False},
    "saferedir, image verdict alone, same step": {
        "use_prompt": False,
        "recheck": "same_step",
        "escalation": "evidence",
    },
}
ORDER = ("none", *VARIANTS, "duo", *METHODS)


def guards_of(method: str, task: Task, pipe: Any) -> list[Guard[Any]]:
    """Fresh guards of one row."""
    if method == "none":
        return []
    if method in VARIANTS:
        guard = SafeRedir.from_pretrained(f"pictoworld/{task.name}")
        return [SafeRedir(replace(guard.config, **VARIANTS[method]), guard.network, guard.anchor)]
    if method == "duo":
        return [Guard.from_pretrained(f"pictoworld/{task.name}-duo")]
    return make_guards(method, task, pipe)


class Run:
    """Pipelines and judges of one run, and the unguarded images, which every method is compared with."""

    def __init__(self, n: int, second: int, lora: str) -> None:
        self.n, self.second, self._lora = n, second, lora
        self.judge, self.template = load_judge(), TemplateJudge()
        self._pipes: dict[str, Any] = {}
        self._bare: dict[tuple[Any, ...], torch.Tensor] = {}

    def pipe(self, setting: Setting) -> Any:
        """The pipeline of a setting."""
        if setting.model not in self._pipes:
            loras = [(self._lora, 1.0)] if setting.model == DISTILLED else []
            self._pipes[setting.model] = sr.load_pipeline("pictoworld", loras=loras)
        pipe = self._pipes[setting.model]
        config = diffusers.DDIMScheduler.from_config(pipe.scheduler.config).config
        pipe.scheduler = getattr(diffusers, setting.scheduler).from_config(config)
        return pipe

    def images(self, setting: Setting, texts: list[str], guards: list[Guard[Any]], steps: int) -> torch.Tensor:
        """One image a prompt."""
        call = {"steps": steps, "guidance_scale": setting.guidance, "seed": 3_000_000}
        return generate(self.pipe(setting), texts, guards=guards, **call).images

    def cell(self, task: Task, setting: Setting, steps: int, method: str) -> dict[str, Any]:
        """The figures of one method in one setting."""
        guards = guards_of(method, task, self.pipe(setting))
        forget, retain = forget_prompts(task, "test-seen", self.n), retain_prompts(task, "test-seen", self.n)
        try:
            shown = self.images(setting, [prompt.text for prompt in forget], guards, steps)
            others = self.images(setting, [prompt.text for prompt in retain], guards, steps)
        except GuardError as error:
            if NEEDS_GUIDANCE not in str(error):
                raise
            return {"refused": str(error)}
        judged, judged_others = self.judge.judge(shown), self.judge.judge(others)
        key = (task.name, setting, steps)
        if method == "none":
            self._bare = {key: others}  # of the latest setting only
        bare = self._bare.get(key)
        if bare is None:
            bare = self._bare[key] = self.images(setting, [prompt.text for prompt in retain], [], steps)
        return {
            "n": self.n,
            "concept": concept_rate(judged, task).to_dict(),
            "second judge": concept_rate(self.template.judge(shown[: self.second]), task).to_dict(),
            "broken": rate_of(judged.is_broken).to_dict(),
            "identical": rate_of(identical(others, bare)).to_dict(),
            "kept": images_kept(judged_others, self.judge.judge(bare), retain, task).to_dict(),
            "others broken": rate_of(judged_others.is_broken).to_dict(),
        }


def digest_of(task: str, lora: str | None, second: int) -> str:
    """What a kept cell belongs to, beside what its name says: the packaged guards, a LoRA of the user's, the second judge's n."""
    parts = [lora and hashlib.sha256((Path(lora) / LORA_FILE).read_bytes()).hexdigest()[:12], str(second)]
    for name in (task, f"{task}-duo"):
        folder = find_guard(f"pictoworld/{name}")
        parts.append(guard_digest(folder, Guard.from_pretrained(folder).config.to_dict()))
    return "-".join(part for part in parts if part)


def table(rows: dict[str, dict[str, dict[str, Any]]], measure: str) -> Iterator[str]:
    """One table: a row a method, a column a number of steps."""
    yield f"| method | {' | '.join(f'{steps} step' + 's' * (steps > 1) for steps in STEPS)} |"
    yield "|---" * (1 + len(STEPS)) + "|"
    for method, cells in rows.items():
        texts = []
        for steps in STEPS:
            found = cells.get(str(steps))
            name = measure if measure != "others" else "identical" if method in ("none", *VARIANTS) else "kept"
            texts.append("–" if found is None else "refused" if "refused" in found else cell(found[name]))
        yield f"| {method} | {' | '.join(texts)} |"


def markdown(results: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> str:
    """The page's tables: results[task][setting][method][steps]."""
    lines = []
    for task, settings in results.items():
        for setting, rows in settings.items():
            lines += [f"## {task}: {setting}", "", "Concept:", "", *table(rows, "concept"), ""]
            lines += ["Others:", "", *table(rows, "others"), ""]
            broken = rows.get("none", {})
            if broken:
                shares = ", ".join(f"{steps}: {cell(broken[steps]['broken'])}" for steps in broken)
                lines += [f"Broken without a guard, by steps: {shares}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="prompts a cell")
    parser.add_argument("--second", type=int, default=50, help="images that the template judge counts, too")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=list(ORDER), choices=ORDER)
    parser.add_argument("--settings", type=int, nargs="+", default=list(range(len(SETTINGS))), help="their numbers")
    parser.add_argument("--lora", help="folder of a LoRA for few steps, in place of the packaged one")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("runs/few-steps-results"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    run = Run(arguments.n, arguments.second, arguments.lora or DISTILLED)
    has_lora = arguments.lora is not None or packaged_lora_path(DISTILLED) is not None
    chosen = [SETTINGS[number] for number in arguments.settings if has_lora or SETTINGS[number].model != DISTILLED]
    results: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    with Progress() as progress:
        bar = progress.add_task("", total=len(arguments.tasks) * len(chosen) * len(STEPS) * len(arguments.methods))
        for name in arguments.tasks:
            digest = digest_of(name, arguments.lora, arguments.second)
            for setting in chosen:
                for steps in STEPS:
                    for method in arguments.methods:
                        progress.update(bar, description=f"{name}: {setting.name}, {steps} steps, {method}")
                        words = [name, *setting[:2], f"{setting.guidance:g}", str(steps), method, str(run.n), digest]
                        path = arguments.work / ("-".join(words).replace(", ", "+").replace(" ", "_") + ".json")
                        if not path.exists():
                            with torch.no_grad():
                                found = run.cell(TASKS[name], setting, steps, method)
                            with replacing(path) as temporary:
                                temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
                        rows = results.setdefault(name, {}).setdefault(setting.name, {}).setdefault(method, {})
                        rows[str(steps)] = json.loads(path.read_text(encoding="utf-8"))
                        progress.advance(bar)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "few-steps.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "few-steps.md").write_text(HEAD.format(n=arguments.n) + markdown(results), encoding="utf-8")


if __name__ == "__main__":
    main()
