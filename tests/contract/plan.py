"""Which checks are run: every feature with the guards and pipelines that can show something of their own.

Imports the registries of tests.contract; used by test_contract.py and table.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.contract.feature import Feature, NotApplicable, Refused, representative
from tests.contract.features import FEATURES
from tests.contract.guards import GUARDS, GuardCase, GuardKind
from tests.newer_pipelines import EVERY, NEWER
from tests.tiny_pipelines import PIPELINES, PipelineCase

from saferedir.errors import UnsupportedPipelineError
from saferedir.pipelines.families import FAMILIES, TEXT_FAMILIES


class Check(NamedTuple):
    """One check of the plan."""

    feature: Feature
    case: PipelineCase
    guard: GuardCase

    @property
    def id(self) -> str:
        return f"{self.feature.name}-{self.case.name}-{self.guard.name}".replace(" ", "_")

    @property
    def is_slow(self) -> bool:
        """Whether it can be left out of a quick round: compilers, and what the first method nearly shows for the others."""
        of_others = self.guard.is_method and self.guard is not METHODS[0]
        return "compile" in self.feature.name or (of_others and self.feature.name not in EVERY_METHOD)

    def outcome(self) -> tuple[str, str]:
        """("works", "" or a note), ("refused", sentence) or ("n.a.", reason); a broken promise raises AssertionError."""
        try:
            self.feature.check(self.case, self.guard)
        except NotApplicable as reason:
            return "n.a.", str(reason)
        except (Refused, UnsupportedPipelineError) as sentence:
            return "refused", str(sentence)
        return "works", ""


METHODS = [guard for guard in GUARDS.values() if guard.is_method]
#: one method of each kind, for features that any guard of a kind shows
MODELS: dict[GuardKind, GuardCase] = {GUARDS[name].kind: GUARDS[name] for name in ("saferedir", "duo", "sld")}
#: features of every guard that quick tests see with every method, and that scripted guards go through
EVERY_METHOD = ("disabled", "acts", "detach", "batch", "guidance off", "gradients")
EVERY_SCRIPT = ("acts", "batch", "guidance off")


#: families that the page has a column for
PAGE_FAMILIES = [family for family in TEXT_FAMILIES if any(case.family == family for case in PIPELINES.values())]
NEWER_FAMILIES = [family for family in TEXT_FAMILIES if family not in PAGE_FAMILIES]
#: feature -> guards that the tests see it with on one pipeline of each newer family
OF_NEWER = {
    "read-only": ("watcher",),
    "acts": ("saferedir", "duo", "safe_denoiser", "sld", "negative_prompt", "dual_latent_r1", "dual_latent_r2"),
    "detach": ("saferedir", "sld"),
    "batch": ("saferedir", "sld", "negative_prompt", "x0-editor"),
    "images per prompt": ("saferedir", "sld"),
    "guidance off": ("saferedir",),
    "negative prompt": ("saferedir", "sld"),
    "prompt embeddings": ("saferedir",),
    "extra rows": ("extra-texts", "extra-embeds"),
    "gradients": ("saferedir", "safe_denoiser", "sld"),
    "own rows only": ("saferedir",),
    "step counts": ("saferedir",),
}
#: ... where the text encoder reads an image, so that guards with words of their own are refused
OF_READERS = {
    "read-only": ("watcher",),
    "acts": ("saferedir", "duo", "safe_denoiser", "sld", "dual_latent_r1"),
    "batch": ("saferedir", "x0-editor"),
    "guidance off": ("saferedir",),
    "gradients": ("saferedir",),
    "own rows only": ("saferedir",),
}
#: no safe words are as short as a prompt that is as long as its words, and has no mask
REFUSED_OF_NEWER = {
    ("acts", "cogview-4", "dual_latent_r1"): "cannot be mixed",
    ("acts", "cogview-4", "dual_latent_r2"): "cannot be mixed",
    **{
        ("acts", f"kandinsky-5{kind}", f"dual_latent_r{n}"): "cannot be mixed"
        for kind in ("", "-video")
        for n in (1, 2)
    },
    **{("acts", "kandinsky-5-edit", guard): "reads the input image" for guard in ("sld", "dual_latent_r1")},
    # the pipeline repeats latents, and not the prompt
    **{("images per prompt", "kandinsky-5-video", guard): "got 1 rows where 2" for guard in ("saferedir", "sld")},
    ("acts", "kandinsky-3", "dual_latent_r1"): "mean of all tokens",
    ("acts", "kandinsky-3", "dual_latent_r2"): "mean of all tokens",
    ("acts", "qwen-image-edit", "sld"): "reads the input image",
    ("acts", "qwen-image-edit", "dual_latent_r1"): "reads the input image",
}
#: not where an image depends on the padding of its batch, and negative embeddings must be as long as the prompt's (Kandinsky 3)
NOT_WHERE_PADDING_IS_READ = ("batch", "prompt embeddings", "gradients", "images per prompt")
#: shown without guidance where a pipeline that guides generates one image a call (PRX)
OF_BATCHES = ("batch", "images per prompt", "extra rows", "own rows only")
ONE_IMAGE = {"prx": "prx-unguided"}
#: ... and on the others of its pipelines
OF_NEWER_RELATIVES = {"read-only": ("watcher",), "acts": ("saferedir", "sld"), "batch": ("saferedir",)}


def newer_checks() -> Iterator[Check]:
    """Those of the tests for families that the page has no column for: each feature with a guard of each kind."""
    for case in NEWER.values():
        is_reader = FAMILIES[case.family].encoder_reads_image
        plan = OF_READERS if is_reader else OF_NEWER
        if case.name in ONE_IMAGE.values():
            continue
        if case is not representative(case.family):
            plan = {} if is_reader else OF_NEWER_RELATIVES  # see tests/pipelines/test_coverage.py
        for feature, guards in plan.items():
            if FAMILIES[case.family].padding_is_read and feature in NOT_WHERE_PADDING_IS_READ:
                continue
            shown = NEWER[ONE_IMAGE.get(case.name, case.name)] if feature in OF_BATCHES else case
            for guard in guards:
                if shown is case or not GUARDS[guard].needs:
                    yield Check(FEATURES[feature], shown, GUARDS[guard])


def checks(with_scripts: bool = True, families: Sequence[str] = ()) -> Iterator[Check]:
    """All checks of the tests; or those of the page: no scripted guards in the place of methods, but every family.

    `families`: of newer ones, those to go through all of it as well.
    """
    scripts = [guard for guard in GUARDS.values() if not guard.is_method]
    for feature in FEATURES.values():
        if feature.about == "guard":
            guards = [*METHODS, *scripts] if with_scripts and feature.name in EVERY_SCRIPT else METHODS
        elif feature.about == "script":
            guards = [GUARDS[name] for name in feature.scripts] or METHODS[:1]
        else:
            guards = [MODELS[kind] for kind in feature.kinds]
        for guard in guards:
            for case in cases_of(feature, guard, families):
                if not with_scripts or not feature.tested or case.family in feature.tested:
                    yield Check(feature, case, guard)


def model_of(feature: Feature, guard: str) -> str:
    """The method that a "pipeline" feature was run with for this one."""
    kind = GUARDS[guard].kind
    return MODELS[kind if kind in feature.kinds else "steps"].name


def cases_of(feature: Feature, guard: GuardCase, families: Sequence[str] = ()) -> list[PipelineCase]:
    """All pipelines, or one of every family; scripted guards go through the guards' features on one of every family."""
    is_thorough = feature.cases == "all" and (guard.is_method or feature.about == "script")
    chosen = [family for family in TEXT_FAMILIES if family in PAGE_FAMILIES or family in families]
    if is_thorough:
        return [case for case in EVERY.values() if case.family in chosen]
    return [representative(family) for family in chosen]
