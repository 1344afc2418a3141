"""GivenLatents: the `latents` that a caller hands to a pipeline, tested against the prior before the run begins.

Made by `hooks`, which wraps `prepare_latents`, while a guard with a `latents_test` is attached: the pipeline calls that method
once, with what it was given (None for nothing) and the generators of the run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saferedir.errors import GuardError, UnsupportedPipelineError
from saferedir.guards.base import Guard
from saferedir.pipelines.families import Family
from saferedir.pipelines.latent_prior import PriorTest, prior_test
from saferedir.pipelines.latent_refresh import digest_noise, replace_share
from saferedir.pipelines.latents import channels_of, latent_shape
from saferedir.seam.run_state import arguments_of_call

LATENTS, PREPARE, MASKED = "latents", "prepare_latents", "masked_image_latents"


def check_latents_are_known(pipe: Any, guard: Guard[Any]) -> None:
    """Raise UnsupportedPipelineError where nobody can say what distribution the `latents` of this pipeline's call have.

    Fine are pipelines that take none, and those that scale what they are given as their own noise; not those of images, which
    noise an image up to a level of their own and take `latents` for its outcome.
    """
    if LATENTS not in inspect.signature(type(pipe).__call__).parameters:
        return
    prepare = getattr(type(pipe), PREPARE, None)
    names = set() if prepare is None else set(inspect.signature(prepare).parameters)
    if LATENTS in names and ("image" not in names or "is_strength_max" in names):
        return
    raise UnsupportedPipelineError(
        f"guard {guard.method!r} tests latents against the prior (latents_test={guard.latents_test!r}), and what `latents` of a "
        f"{type(pipe).__name__} stand for depends on its other arguments; set latents_test to 'off', or use the text-to-image "
        "pipeline."
    )


#: values of `latents_test` that refuse latents which do not look like noise
REFUSING = ("refuse", "refresh_all")


_REPLACED = "The latents given did not look like noise ({}) and were replaced by fresh noise."
_MIXED = "A share of {:g} of the latents given was replaced by noise that they decide."


class GivenLatents:
    """Tests the latents of each call; what it replaced is said in `take_notes`, one text an image."""

    def __init__(self, family: Family) -> None:
        self._family = family
        #: attached now; of these the enabled ones with a `latents_test` count
        self.guards: Sequence[Guard[Any]] = ()
        self._notes: tuple[str, ...] = ()

    def take_notes(self) -> tuple[str, ...]:
        """What was replaced since the last time, "" for an image whose latents are as given; () for nothing at all."""
        notes, self._notes = self._notes, ()
        return notes

    def prepare_latents(self, pipe: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The pipeline's own answer, or one from fresh noise in rows that failed; GuardError where a guard refuses them.

        Under "refresh_all" the rows that passed have a share of noise in them that their own values decide
        (`latent_refresh.digest_noise`); the largest share, where several guards ask for one.

        An input image that is handed over as latents is refused by every test: it begins a run past the prior, or as
        `masked_image_latents`, or in further channels of `latents`, stands beside the noise in every step.
        """
        self._notes = ()
        bound = inspect.signature(original).bind(*args, **kwargs)
        given = bound.arguments.get(LATENTS)
        testing = [guard for guard in self.guards if guard.enabled and guard.latents_test != "off"]
        if testing and _is_of_latents(pipe, bound.arguments.get("image")):
            raise GuardError(
                f"the image given is a tensor of latents, which guard {testing[0].method!r} cannot test as it tests `latents` "
                f"(latents_test={testing[0].latents_test!r}); give an RGB image in its place."
            )
        if testing and (arguments_of_call(pipe) or {}).get(MASKED) is not None:
            raise GuardError(
                f"{MASKED} are given, which guard {testing[0].method!r} cannot test as it tests `latents` "
                f"(latents_test={testing[0].latents_test!r}); leave them out, the pipeline makes them from image and mask_image."
            )
        if given is None or not testing:
            return original(*args, **kwargs)
        if refusing := [guard for guard in testing if guard.latents_test == "refuse_all"]:
            raise GuardError(
                f"latents are given, and guard {refusing[0].method!r} takes none (latents_test='refuse_all'); give a generator "
                "in their place."
            )
        if bool(self._apart(given, bound.arguments)[1].any()):
            raise GuardError(
                f"the latents given have an image or a mask beside their noise, which guard {testing[0].method!r} cannot test "
                f"(latents_test={testing[0].latents_test!r}); fill those channels with zeros."
            )
        test = prior_test(self._spatial(pipe, given, bound.arguments))
        for guard in testing:
            failed = test.p_value < guard.latents_false_positives
            if guard.latents_test in REFUSING and bool(failed.any()):
                row = int(failed.nonzero()[0])
                raise GuardError(
                    f"the latents given for image {row} do not look like noise ({_words(test, row)}), so guard {guard.method!r} "
                    "generates nothing; give a generator in place of latents, or latents from torch.randn."
                )
        limit = max(guard.latents_false_positives for guard in testing)
        failed = test.p_value < limit
        share = max(
            (guard.latents_fresh_share for guard in testing if guard.latents_test == "refresh_all"), default=0.0
        )
        self._notes = tuple(
            _REPLACED.format(_words(test, row)) if is_bad else _MIXED.format(share) if share else ""
            for row, is_bad in enumerate(failed.tolist())
        )
        if not any(self._notes):
            self._notes = ()
        if share:
            bound.arguments[LATENTS] = self._mixed(given, bound.arguments, share)
        if not bool(failed.any()):
            return original(*bound.args, **bound.kwargs)
        generators = _generators(bound.arguments.get("generator"))
        states = [generator.get_state() for generator in generators]
        taken, bound.arguments[LATENTS] = bound.arguments[LATENTS], None
        fresh = original(*bound.args, **bound.kwargs)
        if bool(failed.all()):
            return fresh
        # the other rows are as they would be by themselves
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        bound.arguments[LATENTS] = taken
        return _replaced(original(*bound.args, **bound.kwargs), fresh, failed)

    def _mixed(self, latents: Tensor, arguments: Mapping[str, Any], share: float) -> Tensor:
        """The caller's latents with a share of noise; the channels beside it stay as they are."""
        noise, beside = self._apart(latents, arguments)
        mixed = replace_share(noise, digest_noise(noise), share)
        return torch.cat([mixed, beside], dim=-1) if beside.shape[-1] else mixed

    def _apart(self, latents: Tensor, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The noise of the caller's latents, and the channels of an image and a mask beside it: the last ones, or none."""
        packing, channels = self._family.packing, arguments.get("num_channels_latents")
        if packing is None or packing.ndim == 3 or latents.ndim != packing.ndim or channels is None:
            channels = latents.shape[-1]
        return latents[..., :channels], latents[..., channels:]

    def _spatial(self, pipe: Any, latents: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """(B, C, ..., h, w) of latents as the caller gives them."""
        packing = self._family.packing
        if packing is None or latents.ndim != packing.ndim:  # FLUX.2 packs them itself
            return latents
        if packing.ndim > 3:
            grid = int(latents.shape[2]), int(latents.shape[3])
            return packing.unpack(latents, grid)[:, : arguments.get("num_channels_latents")]
        if "num_frames" in arguments:
            _, frames, height, width = latent_shape(pipe, arguments)
            return packing.unpack(latents, (frames, height, width))
        side = int(pipe.vae_scale_factor) * 2
        return packing.unpack(latents, (int(arguments["height"]) // side, int(arguments["width"]) // side))


def _is_of_latents(pipe: Any, image: Any) -> bool:
    """Whether an input image, as the pipeline has prepared it, is what its autoencoder would have made of RGB pixels."""
    channels = channels_of(getattr(getattr(pipe, "vae", None), "config", {}))
    return isinstance(image, Tensor) and image.ndim >= 4 and image.shape[1] == channels != 3


def _generators(given: Any) -> list[torch.Generator]:
    """Those that a pipeline samples from, torch's own where it was given none."""
    if isinstance(given, torch.Generator):
        return [given]
    return list(given) if given else [torch.default_generator]


def _words(test: PriorTest, row: int) -> str:
    return (
        f"mean square {float(test.mean_square[row]):.2f} where noise has 1.00, autocorrelation "
        f"{float(test.autocorrelation[row]):+.2f} where it has 0, p = {float(test.p_value[row]):.1g}"
    )


def _replaced(answer: Any, fresh: Any, rows: Tensor) -> Any:
    """`answer` of prepare_latents with the tensors of `fresh` in some rows (B,); what is not by row is the same in both."""
    if isinstance(answer, tuple):
        return tuple(_replaced(mine, new, rows) for mine, new in zip(answer, fresh, strict=True))
    if not isinstance(answer, Tensor) or answer.shape != fresh.shape or len(answer) != len(rows):
        return answer
    return torch.where(rows.to(answer.device).view(-1, *(1,) * (answer.ndim - 1)), fresh, answer)
