"""Guards in other people's servers: vLLM-Omni's adapter, by its contract, and LitServe's own class."""

from __future__ import annotations

import base64
import inspect
import io
import pickle
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from saferedir.errors import GuardConfigError, GuardError
from saferedir.interop.vllm_omni import GuardArguments, guarded_adapter
from saferedir.pipelines.loading import load_pipeline

STEPS = 2


@dataclass
class DiffusionOutput:
    """As vLLM-Omni's: either an output or an error."""

    output: Any = None
    error: str | None = None


class Adapter(nn.Module):
    """What vLLM-Omni's DiffusersAdapterPipeline promises its subclasses, in our words: who calls what, with which arguments."""

    def __init__(self, *, od_config: Any, device: Any = None) -> None:
        super().__init__()
        self.od_config, self.device = od_config, device

    def load_weights(self) -> None:
        self._pipeline = load_pipeline(self.od_config.model)
        self._pipeline.to(self.device)
        self._accepted = set(inspect.signature(self._pipeline.__call__).parameters)

    def forward(self, req: Any) -> DiffusionOutput:
        call = {name: value for name, value in vars(req.sampling_params).items() if name in self._accepted}
        call |= {"prompt": req.prompts, "generator": torch.Generator().manual_seed(0)}
        with torch.inference_mode():
            output = self._pipeline(**call)
        return self._wrap_output(output)

    def _wrap_output(self, output: Any) -> DiffusionOutput:
        return DiffusionOutput(output=output.images)


def request(*prompts: str) -> Any:
    sampling = SimpleNamespace(num_inference_steps=STEPS, guidance_scale=4.0, output_type="pil", unknown=1)
    return SimpleNamespace(prompts=list(prompts), sampling_params=sampling)


def config(**arguments: Any) -> Any:
    arguments = {"pipeline_class": "…", "guards": ["pictoworld/star"], "on_unsafe": "block", **arguments}
    return SimpleNamespace(model="pictoworld", custom_pipeline_args=arguments)


def test_vllm_omni_gets_images_or_an_error() -> None:
    model = guarded_adapter(Adapter, DiffusionOutput)(od_config=config())
    assert model.load_weights(iter(())) == set() == {name for name, _ in model.named_parameters()}
    model.eval()
    fine = model(request("a blue circle"))
    assert fine.error is None and len(fine.output) == 1 and isinstance(fine.output[0], Image.Image)
    for prompts in (("a red star",), ("a blue circle", "a red star")):
        refused = model(request(*prompts))
        assert refused.error == "moderation_blocked: star" and refused.output is None
    model._pipeline.guards[0].enabled = False
    with pytest.raises(GuardError):
        model(request("a blue circle"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guards": []}, "names no guards"), (None, "names no guards"), ({"guards": "pictoworld/star"}, "a list of names"),
        ({"guards": ["a"], "strength": 2}, "'strength'"),
    ],
)  # fmt: skip
def test_arguments_of_vllm_omni_that_are_wrong(arguments: Any, message: str) -> None:
    with pytest.raises(GuardConfigError, match=message):
        GuardArguments.read(arguments)


@dataclass
class _Pipe:
    """A protected pipeline as LitServe's class sees it."""

    calls: list[Any] = field(default_factory=list)

    def __call__(self, prompts: list[str], generator: list[Any], **more: Any) -> Any:
        self.calls.append(prompts)
        if any("raise" in prompt for prompt in prompts):
            raise GuardError("the guard raised on a secret prompt.")
        blocked = ["star" in prompt for prompt in prompts]
        images = [Image.new("RGB", (8, 8), (g.initial_seed() % 256, 0, 0)) for g in generator]
        return SimpleNamespace(
            images=images,
            blocked=blocked,
            decisions=[],
            blocked_by=[("star",) if is_blocked else () for is_blocked in blocked],
        )


def test_litserve_answers_each_of_a_batch_by_itself() -> None:
    pytest.importorskip("litserve", reason="the extra litserve is not installed")
    from fastapi import HTTPException

    from saferedir.interop.litserve import GuardedImages

    api = GuardedImages("pictoworld", ["pictoworld/star"], max_batch_size=4, batch_timeout=0.05)
    pipe: Any = _Pipe()
    api._safe = pipe

    def answers(*requests: Any) -> list[Any]:
        asks = [api.decode_request(request) for request in requests]
        return [api.encode_response(made) for made in api.unbatch(api.predict(api.batch(asks)))]

    first, refused = answers({"prompt": "a circle", "seed": 7}, {"prompt": "a star"})
    assert pipe.calls == [["a circle", "a star"]]
    image = Image.open(io.BytesIO(base64.b64decode(first["b64_json"])))
    assert first["seed"] == 7 and image.getpixel((0, 0)) == (7, 0, 0)
    assert (
        refused.status_code == 400
        and b'"categories":["star"]' in refused.body
        and b"moderation_blocked" in refused.body
    )
    for failed in answers({"prompt": "raise"}, {"prompt": "a circle"}):
        assert failed.status_code == 503 and b"secret" not in failed.body
    assert pickle.loads(pickle.dumps(refused)).status_code == 400  # it comes from another process
    for wrong in (
        {},
        [],
        {"prompt": ""},
        {"prompt": "a", "seed": -1},
        {"prompt": "a", "seed": True},
        {"prompt": "a", "steps": 1},
    ):
        with pytest.raises(HTTPException) as caught:
            api.decode_request(wrong)
        assert caught.value.status_code == 400
    assert api.encode_response(api.predict(api.decode_request({"prompt": "a circle"})))["b64_json"]
