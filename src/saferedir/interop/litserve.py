"""Guarded images in LitServe (extra `litserve`): a LitAPI whose pipeline is under a policy of `saferedir.protect`.

    import litserve as ls
    from saferedir.interop.litserve import GuardedImages

    api = GuardedImages("pictoworld", ["pictoworld/star"], verify=["star"], max_batch_size=8, batch_timeout=0.05)
    ls.LitServer(api).run(port=8000, host="127.0.0.1")

A request is {"prompt": …, "seed": …}; an answer holds the PNG in base64 and the guards' outcomes. What a policy blocks is a 400
with code "moderation_blocked", a guard or judge that fails a 503: no image either way. There is no audit, no key and no queue
bound of ours here; `saferedir serve` has them.
"""

from __future__ import annotations

import base64
import io
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from saferedir.guard import Guard
from saferedir.judges.presets import preset
from saferedir.pipelines.loading import load_pipeline
from saferedir.protect import protect
from saferedir.utils.extras import require_extra
from saferedir.utils.images import output_images

_litserve: Any = require_extra("litserve", "litserve", "GuardedImages")
_MAX_PROMPT = 4000
_MAX_SEED = 2**63 - 1


class Ask(NamedTuple):
    """One image that is asked for."""

    prompt: str
    seed: int


class Made(NamedTuple):
    """What came of it: an image, or the names of those that blocked it, or the kind of error that a guard or judge raised."""

    seed: int
    image: Any = None
    guards: tuple[dict[str, Any], ...] = ()
    blocked_by: tuple[str, ...] = ()
    error: str = ""


class GuardedImages(_litserve.LitAPI):  # type: ignore[misc]
    """A guarded pipeline as a LitAPI; requests of one batch share a pipeline call, each with its own noise and decisions.

    Args:
        model: "pictoworld", a diffusers folder or a hub id.
        guards: packaged guards, folders or hub ids.
        on_unsafe: as of `saferedir.protect`.
        verify: presets of judges.
        retries: under "verify".
        call: further arguments of a pipeline call, such as num_inference_steps.
        litserve: of LitAPI, such as max_batch_size.
    """

    def __init__(
        self,
        model: str,
        guards: Sequence[str],
        *,
        on_unsafe: str = "verify",
        verify: Sequence[str] = (),
        retries: int = 2,
        call: dict[str, Any] | None = None,
        **litserve: Any,
    ) -> None:
        super().__init__(**litserve)
        self._model, self._guards, self._verify = model, list(guards), list(verify)
        self._policy: dict[str, Any] = {"on_unsafe": on_unsafe, "retries": retries}
        self._call = dict(call or {})

    def setup(self, device: str) -> None:
        """Load pipeline, guards and judges, in LitServe's worker."""
        pipe = load_pipeline(self._model, device=device)
        pipe.set_progress_bar_config(disable=True)
        judges = {name: preset(name).load_judge().verifier(name) for name in self._verify}
        guards: list[Guard[Any]] = [Guard.from_pretrained(name) for name in self._guards]
        self._safe = protect(pipe, guards, verify=judges or None, **self._policy)

    def decode_request(self, request: Any) -> Ask:
        """The prompt and the seed; 400 for anything else."""
        known = isinstance(request, dict) and set(request) <= {"prompt", "seed"}
        prompt, seed = (request.get("prompt"), request.get("seed")) if known else (None, None)
        seed = secrets.randbelow(2**32) if seed is None else seed
        is_fine = isinstance(prompt, str) and prompt.strip() and len(prompt) <= _MAX_PROMPT
        if not is_fine or isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _MAX_SEED:
            from fastapi import HTTPException

            raise HTTPException(
                400, f"Send a prompt of 1 to {_MAX_PROMPT} characters and, if wanted, a whole seed >= 0."
            )
        assert isinstance(prompt, str)
        return Ask(prompt, seed)

    def batch(self, inputs: Sequence[Ask]) -> list[Ask]:
        """They stay apart until the pipeline call."""
        return list(inputs)

    def unbatch(self, output: list[Made]) -> list[Made]:
        """One for each request."""
        return output

    def predict(self, asked: Ask | list[Ask]) -> Made | list[Made]:
        """One pipeline call; where it raises, nothing of it is shown."""
        asks = asked if isinstance(asked, list) else [asked]
        try:
            output = self._safe(
                [ask.prompt for ask in asks],
                generator=[torch.Generator().manual_seed(ask.seed) for ask in asks],
                **self._call,
            )
            made = [self._made(output, row, ask) for row, ask in enumerate(asks)]
        except Exception as error:
            made = [Made(ask.seed, error=type(error).__name__) for ask in asks]
        return made if isinstance(asked, list) else made[0]

    def _made(self, output: Any, row: int, ask: Ask) -> Made:
        guards = tuple(
            {"guard": decision.name or decision.guard, "concept": decision.concept, "outcome": decision.outcome}
            for decision in output.decisions
            if decision.image == row
        )
        image = None if output.blocked[row] else output_images(output)[row]
        return Made(ask.seed, image, guards, tuple(output.blocked_by[row]))

    def encode_response(self, output: Made) -> Any:
        """The image as PNG in base64, or the refusal with its status."""
        from fastapi.responses import JSONResponse

        if output.error:
            message = f"The image could not be checked or made, so none is shown ({output.error})."
            return JSONResponse({"error": {"message": message, "code": "guard_failed"}}, 503)
        if output.image is None:
            message = "The request was refused by the safety policy."
            error = {"message": message, "code": "moderation_blocked", "categories": sorted(output.blocked_by)}
            return JSONResponse({"error": error}, 400)
        file = io.BytesIO()
        output.image.save(file, "PNG")
        return {
            "b64_json": base64.b64encode(file.getvalue()).decode(),
            "seed": output.seed,
            "guards": list(output.guards),
        }
