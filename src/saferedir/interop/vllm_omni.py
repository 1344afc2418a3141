"""Guards in vLLM-Omni: its adapter for pipelines of diffusers, with the pipeline under a policy of `saferedir.protect`.

    omni = Omni(
        model="stabilityai/stable-diffusion-xl-base-1.0",
        diffusion_load_format="dummy",
        custom_pipeline_args={
            "pipeline_class": "saferedir.interop.vllm_omni.GuardedPipeline",
            "guards": ["runs/star"], "on_unsafe": "verify", "verify": ["star"], "retries": 2,
        },
    )

The adapter hands a whole pipeline call to diffusers, so that guards see every step. A request of which an image is blocked ends
with an error that begins with "moderation_blocked", and a guard that fails with an exception: no image either way.
Written against `DiffusersAdapterPipeline` and the loader of vLLM-Omni's main branch of 2026 (their constructor, `load_weights`,
`forward`, `_wrap_output`); vllm-omni itself is not among this library's dependencies, and was not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from saferedir.errors import GuardConfigError
from saferedir.guard import Guard
from saferedir.judges.presets import preset
from saferedir.protect import protect

#: the error of a request that a policy blocked begins with it
BLOCKED = "moderation_blocked"


@dataclass(frozen=True)
class GuardArguments:
    """What `custom_pipeline_args` says beside `pipeline_class`.

    Attributes:
        guards: packaged guards, folders or hub ids; at least one.
        on_unsafe: as of `saferedir.protect`.
        verify: presets of judges.
        retries: under "verify".
    """

    guards: tuple[str, ...]
    on_unsafe: str = "verify"
    verify: tuple[str, ...] = ()
    retries: int = 2

    @classmethod
    def read(cls, arguments: Mapping[str, Any] | None) -> GuardArguments:
        """Of `custom_pipeline_args`; GuardConfigError for what is unknown, and where no guard is named."""
        given = {name: value for name, value in (arguments or {}).items() if name != "pipeline_class"}
        if unknown := sorted(set(given) - set(cls.__dataclass_fields__)):
            raise GuardConfigError(
                f"custom_pipeline_args has {unknown[0]!r}; expected pipeline_class, guards, on_unsafe, verify or retries."
            )
        for name in ("guards", "verify"):
            value = given.get(name, ())
            if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
                raise GuardConfigError(f"custom_pipeline_args[{name!r}] is {value!r}; expected a list of names.")
            given[name] = tuple(value)
        if not given["guards"]:
            raise GuardConfigError(
                "custom_pipeline_args names no guards; give guards=[…], or use the adapter without a policy."
            )
        return cls(**given)


def guarded_adapter(adapter: type[Any], output_class: type[Any]) -> type[Any]:
    """A subclass of vLLM-Omni's adapter whose pipeline is under a policy.

    Args:
        adapter: `DiffusersAdapterPipeline`.
        output_class: `DiffusionOutput`, which takes `error`.
    """

    class GuardedPipeline(adapter):  # type: ignore[misc]
        """vLLM-Omni's adapter for pipelines of diffusers, under a policy of `saferedir.protect`."""

        _pipeline: Any

        def __init__(self, *, od_config: Any, device: Any = None, prefix: str = "") -> None:
            import torch

            self._arguments = GuardArguments.read(od_config.custom_pipeline_args)
            super().__init__(
                od_config=od_config, device=device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
            )

        def load_weights(self, weights: Iterable[Any] = ()) -> set[str]:
            """Load the pipeline as the adapter does, and put the guards on it.

            Args:
                weights: what the loader of custom pipelines hands over; diffusers loads its own.
            """
            super().load_weights()
            given = self._arguments
            judges = {name: preset(name).load_judge().verifier(name) for name in given.verify}
            self._pipeline = protect(
                self._pipeline,
                [Guard.from_pretrained(name) for name in given.guards],
                on_unsafe=given.on_unsafe,
                verify=judges or None,
                retries=given.retries,
            )
            return set()

        def _wrap_output(self, output: Any) -> Any:
            """The images, or an error without one of them where one is blocked."""
            if any(output.blocked):
                names = sorted({name for by in output.blocked_by for name in by})
                return output_class(error=f"{BLOCKED}: {', '.join(names)}")
            return super()._wrap_output(output)

    return GuardedPipeline


def __getattr__(name: str) -> Any:
    """`GuardedPipeline` is made when vLLM-Omni asks for it by its name: it is a subclass of one of theirs."""
    if name != "GuardedPipeline":
        raise AttributeError(name)
    from vllm_omni.diffusion.data import DiffusionOutput
    from vllm_omni.diffusion.models.diffusers_adapter.pipeline_diffusers_adapter import DiffusersAdapterPipeline

    made = guarded_adapter(DiffusersAdapterPipeline, DiffusionOutput)
    globals()[name] = made
    return made
