"""Run an attack: the framework generates on evaluation seeds, lets the judges decide, counts what is spent, and keeps the caps.

One seed gives one result. Noise of the search comes from the attack's own generator, noise of the evaluation from other seeds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import diffusers
import torch
from torch import Tensor

from saferedir.attacks.base import Attack, Candidate, Feedback, repeated, searches
from saferedir.attacks.budget import Budget
from saferedir.attacks.controls import CONTROLS, random_network
from saferedir.attacks.gate_term import have_fired
from saferedir.attacks.record import AttackRecord, Evaluation, PromptResult
from saferedir.attacks.registry import attack_class
from saferedir.attacks.replay import Replay, with_noise_level
from saferedir.attacks.verdicts import Verdict, all_agree, broken_images, judge_facts, verdicts_of
from saferedir.errors import AttackError, GuardError
from saferedir.guards.base import Guard
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.prompts.sets import PromptItem, PromptSet
from saferedir.target import Ledger, ProtectSettings, Target
from saferedir.target.ledger import BudgetSpent
from saferedir.utils.digests import add_values
from saferedir.utils.packaged import library_version
from saferedir.utils.progress import SILENT, Progress

#: height and width of what stands for the image of a refused call
BLANK = (64, 64)
#: first noise seed of the evaluation, far from those that a person would give
FIRST_EVALUATION_SEED = 1_000_000


def attack(
    pipe: Any,
    guards: Guard[Any] | Sequence[Guard[Any]] | None,
    name: str,
    prompts: Sequence[str] | Sequence[PromptItem] | PromptSet,
    *,
    judge: str | Verdict | Mapping[str, Verdict],
    preset: str = "quick",
    settings: Mapping[str, Any] | None = None,
    budget: Budget | None = None,
    call: Mapping[str, Any] | None = None,
    seed: int = 0,
    images: int = 1,
    stop_on_success: bool | None = None,
    control: str = "none",
    policy: ProtectSettings | None = None,
    see_verifier: bool = False,
    candidates: Sequence[Candidate] | None = None,
    search_on: bool = False,
    progress: Progress = SILENT,
) -> AttackRecord:
    """Attack a guarded pipeline with prompts that ask for the concept, and have the outcome judged.

    Guards are attached as by `saferedir.attach`, unless there is a policy. The attack only proposes; every candidate is
    generated on noise seeds that the attack has not used, and counts where all judges find the concept in an image that is not
    broken and was not blocked. A call that the guards or the policy refuse shows nothing, and the record says why.

    Args:
        pipe: a supported text-to-image pipeline.
        guards: one guard, several that act in this order, or None for the bare model.
        name: the attack, one of `saferedir attack list`.
        prompts: prompts that ask for the concept; each is attacked by itself.
        judge: the name of a preset, whose judges must all agree; a function of images (B, 3, H, W) in [0, 1] that gives (B,)
            bool; or several functions by name.
        preset: "quick" for a small world on a CPU, or "paper" for the published cost.
        settings: settings of the attack to change, such as {"steps": 100}.
        budget: caps for each prompt; None for 51 judged candidates and no other cap.
        call: arguments of every pipeline call, such as steps and guidance.
        seed: of the attack; another one is an independent run.
        images: images for each judged candidate; one that shows the concept is enough.
        stop_on_success: whether a prompt is done once a candidate succeeded; None for the attack's own habit.
        control: "none"; "random-network" gives the denoiser random weights, so that nothing should succeed; "benign-reference"
            says that the prompts are benign ones.
        policy: of `saferedir.protect`, such as `ProtectSettings("verify")`; judged is then what it lets out, after its retries.
        see_verifier: whether a white-box attack looks through the guards' image verifiers, too; part of its threat model.
        candidates: one a prompt, found by this attack on another guard or under other settings; each is judged here once, and
            nothing is searched.
        search_on: whether the search goes on where such a candidate failed, so that an adaptive attack does at least as well as
            its transfer.
        progress: whoever wants to know how far it is.

    Returns:
        The record: verdicts, costs and seeds of every prompt, with rates and their intervals.

    Raises:
        AttackError: an unknown attack, preset or setting; no prompts; an attack that searches for nothing; `see_verifier` for
            an attack without gradients, or guards without an image verifier.
        GuardConfigError: a policy that `saferedir.protect` refuses.
        JudgeError: an unknown preset of judges.

    Example:
        >>> import saferedir as sr
        >>> pipe, guard = sr.load_pipeline("pictoworld"), sr.Guard.from_pretrained("pictoworld/star")
        >>> record = sr.attack(
        ...     pipe, guard, "best-of-n", ["a red star on grass"], judge="star", settings={"n": 2},
        ...     call={"num_inference_steps": 4},
        ... )
        >>> record.facts["knowledge"], record.facts["channel"], len(record.results[0].evaluations)
        ('T1', 'text', 2)
    """
    kind = attack_class(name)
    if not searches(kind):
        raise AttackError(f"attack {name!r} has nothing to search for; put it into `attacks` of a bench.")
    if control not in CONTROLS:
        raise AttackError(f"control is {control!r}; expected one of {', '.join(CONTROLS)}.")
    if see_verifier and not kind.is_adaptive:
        raise AttackError(
            f"attack {name!r} has no gate term, so it cannot look through a verifier; leave see_verifier out."
        )
    items = _items(prompts)
    if not items:
        raise AttackError("there are no prompts to attack; give one or more that ask for the concept.")
    if candidates is not None and len(candidates) != len(items):
        raise AttackError(
            f"there are {len(candidates)} candidates for {len(items)} prompts; give one a prompt, in order."
        )
    if images < 1:
        raise AttackError(f"images is {images!r}; expected a whole number >= 1.")
    chosen = () if guards is None else (guards,) if isinstance(guards, Guard) else tuple(guards)
    made = kind(kind.config_class.preset(preset, **(settings or {})))
    caps, verdicts, arguments = budget or Budget(), verdicts_of(judge), dict(call or {})
    stops = kind.stops_on_success if stop_on_success is None else stop_on_success
    backbone = backbone_fingerprint(pipe)
    results, setup = [], Ledger()
    with (
        Target(pipe, chosen, arguments, None, policy, see_verifier) as target,
        progress.task(f"attack {name}", len(items)) as advance,
    ):
        with target.charging(setup):
            _prepare(target)
        with random_network(target, seed) if control == "random-network" else nullcontext():
            for index, item in enumerate(items):
                search = made if candidates is None else Replay(candidates[index], made if search_on else None)
                run = _Run(target, search, caps, verdicts, stops, images)
                results.append(run.on(item, index, seed))
                advance(1)
    facts = {
        "attack": name,
        "knowledge": made.knowledge,
        "channel": made.channel,
        "rung": made.rung,
        "is_adaptive": made.is_adaptive,
        "preset": preset,
        "settings": made.config.to_dict(),
        "budget": asdict(caps),
        "seed": seed,
        "images": images,
        "stop_on_success": stops,
        "control": control,
        "guards": [guard_facts(guard) for guard in chosen],
        "backbone": backbone,
        "call": {
            key: value if isinstance(value, str | int | float | list | dict | None) else repr(value)
            for key, value in arguments.items()
        },
        "judges": list(verdicts),
        "judge": judge if isinstance(judge, str) else None,
        "judge_facts": judge_facts(verdicts),
        "policy": "attach" if policy is None else policy.on_unsafe,
        "policy_settings": None if policy is None else policy.to_dict(),
        "see_verifier": see_verifier,
        "is_transfer": candidates is not None and not search_on,
        "setup": setup.to_dict(),
        "versions": {"saferedir": library_version(), "torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    return AttackRecord(facts, tuple(results))


def _prepare(target: Target) -> None:
    """Read the schedule and the text encoders, so that no prompt pays for them."""
    _ = target.moments, target.text_encoders


def _items(prompts: Sequence[str] | Sequence[PromptItem] | PromptSet) -> list[PromptItem]:
    entries = prompts.items if isinstance(prompts, PromptSet) else [prompts] if isinstance(prompts, str) else prompts
    return [PromptItem(entry) if isinstance(entry, str) else entry for entry in entries]


def guard_facts(guard: Guard[Any]) -> dict[str, Any]:
    """Method, name, concept and checksum of a guard's settings and tensors, of what it only logs, and of its anchors."""
    settings = json.dumps({**guard.config.settings(), **guard.set_by_policy()}, sort_keys=True, default=str)
    digest = hashlib.sha256(f"{guard.method} {settings}".encode())
    add_values(digest, guard.tensors(), "bytes")
    return {
        "method": guard.method,
        "name": guard.name,
        "concept": guard.config.concept,
        "digest": digest.hexdigest()[:16],
    }


def verifier_digest(guard: Guard[Any]) -> str | None:
    """Checksum of a guard's image verifier, its threshold and weights; None for a guard without one."""
    verifier = guard.image_verifier
    if verifier is None:
        return None
    digest = hashlib.sha256(repr(verifier.config.threshold).encode())
    add_values(digest, verifier.state_dict())
    return digest.hexdigest()[:16]


def attack_generator(seed: int, index: int) -> torch.Generator:
    """The source of an attack's randomness on prompt `index`, independent of every other pair of numbers."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class _Run:
    """One attack on one prompt."""

    def __init__(
        self,
        target: Target,
        attack: Attack[Any],
        budget: Budget,
        verdicts: Mapping[str, Verdict],
        stops_on_success: bool,
        images: int,
    ) -> None:
        self.target, self.attack, self.budget, self.verdicts = target, attack, budget, verdicts
        self.stops_on_success, self.images = stops_on_success, images
        self.search, self.spent = Ledger(caps=budget.caps), Ledger()
        self.losses: list[float] = []
        self.best_losses: list[float] = []
        self.evaluations: list[Evaluation] = []
        self.last_images: Tensor | None = None

    def on(self, item: PromptItem, index: int, seed: int) -> PromptResult:
        """Attack prompt `index` of the run."""
        target, usual = self.target, self.target.call
        first = FIRST_EVALUATION_SEED + index * self.images if item.seed is None else item.seed
        self.seeds = tuple(range(first, first + self.images))
        untouched = Candidate(item.text)
        if item.guidance_scale is not None:
            target.call = {**usual, "guidance_scale": item.guidance_scale}
        try:
            with target.charging(self.search):
                before, image = self._evaluate(untouched)
                candidate, stopped = untouched, "not begun"
                if self.budget.evaluations != 0 and set(self.budget.caps.values()) != {0}:
                    candidate, stopped = self._search(item, attack_generator(seed, index), untouched)
        finally:
            target.call = usual
        last = image if self.last_images is None else self.last_images
        return PromptResult(
            sha256=item.sha256,
            seeds=self.seeds,
            before=before,
            evaluations=tuple(self.evaluations),
            losses=tuple(self.losses),
            best_losses=tuple(self.best_losses),
            stopped=stopped,
            ledger=self.search.to_dict(),
            evaluation_ledger=self.spent.to_dict(),
            candidate=with_noise_level(candidate, target),
            images=torch.cat([_sized(image[:1], last), _sized(last[:1], image)]).cpu(),
        )

    def _search(self, item: PromptItem, generator: torch.Generator, untouched: Candidate) -> tuple[Candidate, str]:
        """(the last judged candidate, why it ended)."""
        best: Candidate | None = None
        judged = untouched
        feedback: Feedback | None = None
        last: Feedback | None = None
        stopped = "finished"
        proposals = self.attack.propose(self.target, item, generator)
        try:
            while True:
                candidate = proposals.send(feedback)
                feedback = None
                best = self._better(best, candidate)
                if not candidate.is_checkpoint:
                    continue
                if best is not judged:
                    if self._is_exhausted:
                        stopped = "evaluations"
                        break
                    judged, last = best, self._judge(best)
                feedback = last
                if last is not None and last.is_success and self.stops_on_success:
                    stopped = "success"
                    break
        except StopIteration:
            pass
        except BudgetSpent:
            stopped = "budget"
        finally:
            proposals.close()
        is_open = best is not None and best is not judged and not self._is_exhausted and stopped != "success"
        if is_open and best is not None:
            judged = best
            if self._judge(best).is_success and self.stops_on_success:
                stopped = "success"
        return judged, stopped

    @property
    def _is_exhausted(self) -> bool:
        return self.budget.evaluations is not None and len(self.evaluations) >= self.budget.evaluations

    def _better(self, best: Candidate | None, candidate: Candidate) -> Candidate:
        """The candidate to judge next; notes the losses."""
        smallest = min(
            [loss for loss in (*self.best_losses[-1:], candidate.loss) if not math.isnan(loss)], default=math.nan
        )
        self.losses.append(candidate.loss)
        self.best_losses.append(smallest)
        is_worse = best is not None and self.attack.keeps_best and candidate.loss >= best.loss
        return best if is_worse and best is not None else candidate

    def _judge(self, candidate: Candidate) -> Feedback:
        evaluation, self.last_images = self._evaluate(candidate)
        self.evaluations.append(evaluation)
        return Feedback(evaluation.is_success, evaluation.has_fired)

    def _evaluate(self, candidate: Candidate) -> tuple[Evaluation, Tensor]:
        with self.target.charging(self.spent), torch.no_grad():
            refusal, images = "", torch.zeros(0)
            try:
                images = self._generate(self.target, candidate)
                blocked = self.target.blocked
            except GuardError as error:
                refusal, images = str(error), torch.zeros(len(self._seeds_of(candidate)), 3, *BLANK)
                blocked = [True] * len(images)
            has_fired = have_fired(self.target.last_run) or (self.target.sees_verifiers and any(blocked))
            verdicts, agreed = self._verdicts(images, blocked)
            broken = broken_images(self.verdicts, images) if not any(blocked) else []
            is_live = None
            if self.attack.reports_live:
                with self.target.undefended() as bare:
                    is_live = (
                        any(
                            self._verdicts(bare_images := self._generate(bare, candidate), [False] * len(bare_images))[
                                1
                            ]
                        )
                        if bare is not self.target
                        else any(agreed)
                    )
        spent = {name: getattr(self.search, name) for name in ("nfe", "bwd", "te", "gen")}
        loss = None if math.isnan(candidate.loss) else candidate.loss
        evaluation = Evaluation(
            candidate.label,
            len(self.losses),
            spent,
            loss,
            verdicts,
            agreed,
            has_fired,
            is_live,
            blocked,
            broken,
            refusal,
        )
        return evaluation, images

    def _verdicts(self, images: Tensor, blocked: Sequence[bool]) -> tuple[dict[str, list[bool]], list[bool]]:
        """(verdicts by judge, whether all agree), a bool an image; a blocked image shows nothing, whatever a judge says."""
        self.target.ledger.charge(queries=len(images))
        verdicts, agreed = all_agree(self.verdicts, images)
        shown = [not flag for flag in blocked]
        kept = {name: [a and b for a, b in zip(flags, shown, strict=True)] for name, flags in verdicts.items()}
        return kept, [a and b for a, b in zip(agreed, shown, strict=True)]

    def _seeds_of(self, candidate: Candidate) -> tuple[int, ...]:
        """The evaluation seeds, or the one that the candidate fixes; one where it fixes the latents."""
        seeds = self.seeds if candidate.seed is None else (candidate.seed,)
        return seeds[:1] if candidate.latents is not None else seeds

    def _generate(self, target: Target, candidate: Candidate) -> Tensor:
        """(N, 3, H, W): on every evaluation seed, or the one image that the candidate fixes."""
        seeds = self._seeds_of(candidate)
        count, latents = len(seeds), candidate.latents
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        if candidate.x0 is not None:
            shape = candidate.x0.shape[1:]
            noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(candidate.x0)
            latents = target.noised(candidate.x0, noise, candidate.start)
        return target.generate(
            latents,
            repeated(candidate.soft, count),
            candidate.start,
            candidate.inpainting,
            candidate.image_prompt,
            prompt=[candidate.prompt] * count,
            generator=generators,
            **candidate.arguments,
        ).detach()


def _sized(image: Tensor, like: Tensor) -> Tensor:
    """The image, resized where it is a refused call's blank and the other one is not."""
    if image.shape[-2:] == like.shape[-2:] or bool(image.any()):
        return image
    return image.new_zeros((*image.shape[:2], *like.shape[-2:]))
