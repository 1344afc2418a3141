"""A diffusers pipeline under guards and a policy, as the engine's model.

The guards are put on anew where a call needs another policy, or the image-to-image pipeline of the same weights; calls of one
kind share the attachment.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from saferedir.attach import attach
from saferedir.decisions import Decision
from saferedir.errors import BlockedError
from saferedir.guard import Guard
from saferedir.judges.presets import preset
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.pipelines.guiders import guided_call
from saferedir.pipelines.loading import load_pipeline
from saferedir.policy.loading import allow_listed, distinct, guards_of
from saferedir.policy.rules import Policy
from saferedir.policy.verifiers import NamedVerifiers, Verifier
from saferedir.protect import protect
from saferedir.server.config import ModelSettings
from saferedir.server.engine.facts import GuardFacts, JudgeFacts, ModelFacts
from saferedir.server.engine.fingerprints import digest_of, guard_fingerprint
from saferedir.server.engine.prompt_check import check_prompts
from saferedir.server.engine.rows import CallKey, Outcome, Row
from saferedir.server.engine.scores import raise_to, share_of
from saferedir.server.errors import ServerError
from saferedir.server.policies import acting_guards, rules_of
from saferedir.utils.images import output_images


class PipelineModel:
    """A pipeline with its guards and judges; see `model.ImageModel`. One thread uses it."""

    def __init__(self, settings: ModelSettings) -> None:
        device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self._settings = settings
        self._pipe = load_pipeline(settings.source or settings.name, dtype=settings.dtype, device=device)
        self._pipe.set_progress_bar_config(disable=True)
        self._guards: list[Guard[Any]] = [Guard.from_pretrained(name) for name in settings.guard_names]
        self._by_name = dict(zip(settings.guard_names, self._guards, strict=True))
        judges = {name: preset(name).load_judge() for name in settings.verify}
        self._judges = {name: judge.verifier(name) for name, judge in judges.items()}
        rules = settings.rules
        if rules is not None and any(rule.anchor and rule.action != "off" for rule in rules.concepts):
            guards, _ = guards_of(rules, None, load=self._by_name.__getitem__)
            attach(
                self._pipe, distinct(guards)
            ).detach()  # refuses anchors that ask for a concept, before there are calls
        self._edit_pipe = _image_to_image(self._pipe)
        self._current: tuple[Any, ...] | None = None
        self._protected: Any = None
        self.facts = ModelFacts(
            fingerprint=digest_of(backbone_fingerprint(self._pipe)),
            guards=tuple(
                _facts_of(name, guard) for name, guard in zip(settings.guard_names, self._guards, strict=True)
            ),
            bytes=sum(_bytes_of(part) for part in self._pipe.components.values())
            + sum(_bytes_of(guard.image_verifier) for guard in self._guards)
            + sum(value.numel() * value.element_size() for guard in self._guards for value in guard.tensors().values()),
            can_edit=self._edit_pipe is not None,
            judges=tuple(
                JudgeFacts(name, digest_of([judge.facts(), preset(name).rule.to_dict()]))
                for name, judge in judges.items()
            ),
        )

    def run(self, key: CallKey, rows: Sequence[Row]) -> list[Outcome]:
        """One pipeline call for all rows; each has its own noise and its own decisions."""
        call: dict[str, Any] = {
            "prompt": [row.prompt for row in rows],
            "num_inference_steps": self._settings.steps,
            "guidance_scale": self._settings.guidance,
            "generator": [torch.Generator().manual_seed(row.seed) for row in rows],
        }
        with guided_call(self._pipe, call) as given:
            return self._run(key, rows, given)

    def _run(self, key: CallKey, rows: Sequence[Row], call: dict[str, Any]) -> list[Outcome]:
        try:
            if key.kind == "score":
                images = [row.image for row in rows if row.image is not None]
                return [Outcome(None, False, (), scores=scores) for scores in self._scores(images)]
            if key.kind == "check":
                self._detach()
                return check_prompts(self._pipe, self._guards_of(key, call), call)
            if key.kind == "edit":
                call |= {"image": [row.image for row in rows], "strength": self._settings.strength}
            elif key.size is not None:
                call |= {"width": key.size[0], "height": key.size[1]}
            if key.kind == "bare":
                return self._without_guards(call)
            output = self._under_policy(key)(**call)
        except BlockedError as error:  # of input images, before anything was generated
            return self._without_blocked(key, rows, error)
        except Exception:
            self._detach()  # whatever it left behind
            raise
        return self._outcomes(key, output, rows)

    def _without_guards(self, call: dict[str, Any]) -> list[Outcome]:
        if self._settings.unguarded is False:
            raise ServerError("the configuration does not allow images without guards.")
        self._detach()
        return [Outcome(image, False, ()) for image in output_images(self._pipe(**call))]

    def _policy_of(self, key: CallKey) -> Policy | None:
        """The model's policy as calls of this kind have it."""
        return rules_of(self._settings, key.policy, key.profile)

    def _guards_of(self, key: CallKey, call: Mapping[str, Any]) -> Sequence[Guard[Any]]:
        """The guards that decide in such a call, each once."""
        policy = self._policy_of(key)
        if policy is None:
            return self._guards
        guards, rules = guards_of(policy, None, load=self._by_name.__getitem__)
        allow_listed(guards, rules, call)
        return distinct(guards)

    def _outcomes(self, key: CallKey, output: Any, rows: Sequence[Row]) -> list[Outcome]:
        images = output_images(output)
        if not (len(images) == len(output.blocked) == len(rows)):
            raise ServerError(f"{len(rows)} images were asked for and {len(images)} came, so none is shown.")
        policy = self._policy_of(key)
        expected = 0 if policy is None else sum(rule.action != "off" for rule in policy.concepts)
        return [
            Outcome(
                None if is_blocked else image,
                is_blocked,
                tuple(decision for decision in output.decisions if decision.image == index),
                blocked_by=blocked_by,
                expected=expected,
            )
            for index, (image, is_blocked, blocked_by) in enumerate(
                zip(images, output.blocked, output.blocked_by, strict=True)
            )
        ]

    def _without_blocked(self, key: CallKey, rows: Sequence[Row], error: BlockedError) -> list[Outcome]:
        """The outcomes where the input images of some rows are blocked; the others are generated in a call of their own."""
        flagged: dict[int, dict[str, None]] = {}
        for decision in error.decisions:
            flagged.setdefault(decision.image, {})[decision.concept] = None
        if not flagged or not set(flagged) <= set(range(len(rows))):
            raise ServerError("input images were blocked, and it is not known which, so nothing is shown.") from error
        outcomes = {index: self._blocked_by_input(key, concepts, str(error)) for index, concepts in flagged.items()}
        others = [index for index in range(len(rows)) if index not in flagged]
        made = self.run(key, [rows[index] for index in others]) if others else []
        outcomes |= dict(zip(others, made, strict=True))
        return [outcomes[index] for index in range(len(rows))]

    def _blocked_by_input(self, key: CallKey, flagged: Collection[str], message: str) -> Outcome:
        """One decision a guard, or a rule that is on, `unresolved` of those whose concept was found in the input image."""
        policy = self._policy_of(key)
        if policy is None:
            deciding = [(guard, guard.name, "", True) for guard in self._guards]
        else:
            deciding = [
                (self._by_name[rule.guard], rule.concept, rule.category, rule.action != "log")
                for rule in policy.concepts
                if rule.action != "off"
            ]
        decisions = tuple(
            Decision(
                guard=guard.method,
                name=name,
                concept=guard.config.concept,
                category=category,
                image=0,
                action="blocked",
                unresolved=acts and guard.config.concept in flagged,
                message=message,
            )
            for guard, name, category, acts in deciding
        )
        return Outcome(None, True, decisions, blocked_by=tuple(filter(None, flagged)), expected=len(decisions))

    def _under_policy(self, key: CallKey) -> Any:
        """The protected pipeline for such calls."""
        wanted = (key.kind, key.policy, key.retries, key.profile)
        if self._current != wanted:
            self._detach()
            pipe = self._edit_pipe if key.kind == "edit" else self._pipe
            if pipe is None:
                raise ServerError("there is no image-to-image pipeline for this model.")
            policy = self._policy_of(key)
            if policy is None:
                self._protected = protect(
                    pipe,
                    self._guards,
                    on_unsafe=key.policy,
                    retries=key.retries,
                    verify=(self._judges or None) if key.policy != "redirect" else None,
                    check_inputs=self._input_verifier(key),
                )
            else:
                looks = any(rule.action in ("verify", "block") for rule in policy.concepts)
                self._protected = protect(
                    pipe,
                    policy=policy,
                    retries=key.retries,
                    verify=(self._judges or None) if looks else None,
                    check_inputs=self._input_verifier(key),
                    load=self._by_name.__getitem__,
                )
            self._current = wanted
        return self._protected

    def _input_verifier(self, key: CallKey) -> bool | Verifier:
        """What checks the images of an edit before anything is generated, under every policy."""
        if key.kind != "edit":
            return False
        policy = self._policy_of(key)
        acting = self._guards if policy is None else [self._by_name[name] for name in acting_guards(policy)]
        if any(guard.image_verifier is not None for guard in acting):
            return True
        return NamedVerifiers(self._judges) if self._judges else False

    def _scores(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """By the guards' image verifiers, whose threshold is put at 0.5, and by the judges, who say 1 or 0."""
        scores: list[dict[str, float]] = [{} for _ in images]
        for guard in self._guards:
            if (verifier := guard.image_verifier) is None:
                continue
            for entry, logit in zip(scores, verifier.logits(images).tolist(), strict=True):
                raise_to(entry, guard.config.concept, share_of(logit, verifier.config.threshold))
        for name, judge in self._judges.items():
            for entry, is_flagged in zip(scores, judge(list(images)), strict=True):
                raise_to(entry, name, float(is_flagged))
        return scores

    def _detach(self) -> None:
        protected, self._protected, self._current = self._protected, None, None
        if protected is not None:
            protected.detach()

    def close(self) -> None:
        """Let go of the weights."""
        self._detach()
        del self._pipe, self._edit_pipe, self._guards, self._by_name, self._judges
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _image_to_image(pipe: Any) -> Any:
    """The image-to-image pipeline of the same weights; None where diffusers has none."""
    from diffusers import AutoPipelineForImage2Image

    try:
        edit_pipe = AutoPipelineForImage2Image.from_pipe(pipe)
    except (ValueError, TypeError):
        return None
    edit_pipe.set_progress_bar_config(disable=True)
    return edit_pipe


def _bytes_of(part: Any) -> int:
    parameters: Callable[[], Any] | None = getattr(part, "parameters", None)
    return 0 if parameters is None else sum(value.numel() * value.element_size() for value in parameters())


def _facts_of(name: str, guard: Guard[Any]) -> GuardFacts:
    return GuardFacts(
        name=name,
        method=guard.method,
        concept=guard.config.concept,
        fingerprint=guard_fingerprint(guard),
        reads_prompts=hasattr(guard, "prompt_score"),
        reads_images=guard.image_verifier is not None,
    )
