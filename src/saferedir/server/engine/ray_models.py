"""Models as Ray Serve deployments: replicas on one machine or many, each with a guarded pipeline (extra `ray`).

Batches are formed by the service, which holds the queue, the keys' shares and the audit; a replica runs one at a time. Replicas
are not reached from outside: Ray Serve's own HTTP proxy is off. A replica that dies takes no image along: its call is made again
by another, from the same seeds. A replica that has loaded another model, other guards or other judges than the first one makes
no image and fails its health check, so that it leaves the rotation: records state what the first one has.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Self

from saferedir.server.config import ModelSettings, Settings
from saferedir.server.engine.facts import ModelFacts, difference
from saferedir.server.engine.host import load_model
from saferedir.server.engine.model import ImageModel, Loader
from saferedir.server.engine.rows import CallKey, Outcome, Row
from saferedir.server.errors import ServerError
from saferedir.utils.extras import require_extra
from saferedir.utils.ray_cluster import LOCAL_ENVIRONMENT, LOOPBACK, connect, environment

#: a call whose replica died so many times is given up
DEATHS = 3
#: seconds between two tries, in which Ray Serve notices that a replica is gone
_PAUSE = 0.5
#: seconds that the first replica of a model may take to load
START_SECONDS = 600.0
#: seconds between two checks of a replica's health; Ray Serve stops it after three that fail
HEALTH_SECONDS = 2.0
_Work = tuple[str, int, Any]  # prompt, seed, image


class Replica:
    """Lives in a process of Ray's; becomes a deployment. One call at a time."""

    def __init__(self, settings: ModelSettings, load: Loader) -> None:
        self._model: ImageModel = load(settings)
        self._problem: str | None = None

    def facts(self) -> ModelFacts:
        return self._model.facts

    def run(self, key: CallKey, work: Sequence[_Work], expected: ModelFacts) -> list[Outcome]:
        """The outcomes of a call; ServerError, before anything is generated, where records would state `expected` wrongly."""
        if (what := difference(expected, self._model.facts)) is not None:
            self._problem = (
                f"a replica has loaded {what}, so it makes no image; give all machines the same files, and restart."
            )
            raise ServerError(self._problem)
        return self._model.run(key, [Row(key, prompt, seed, 0.0, image) for prompt, seed, image in work])

    def check_health(self) -> None:
        """Called by Ray Serve again and again; it stops a replica that raises, and starts another."""
        if self._problem is not None:
            raise ServerError(self._problem)


class RemoteModel:
    """A deployment as the engine's model; see `model.ImageModel`."""

    def __init__(self, ray: ModuleType, handle: Any, facts: ModelFacts) -> None:
        self._ray, self._handle, self.facts = ray, handle, facts

    def run(self, key: CallKey, rows: Sequence[Row]) -> list[Outcome]:
        """One call of a replica, made again by another where it died.

        Raises:
            ServerError: what the replica has loaded is not what records would say.
        """
        work = [(row.prompt, row.seed, row.image) for row in rows]
        return list(_called(self._ray, lambda: self._handle.run.remote(key, work, self.facts)))

    def close(self) -> None:
        """The deployment stays: other threads use it, too."""


class RayModels:
    """All deployments of the service; `load` is the engine's loader. Open it in a `with` block.

    Args:
        load: makes the model within a replica.

    Raises:
        ServerError: no cluster answers.
        MissingExtraError: the extra `ray` is not installed.
    """

    def __init__(self, settings: Settings, load: Loader = load_model) -> None:
        self._settings, self._load, self._lock = settings, load, threading.Lock()
        service = uuid.uuid4().hex  # a cluster may serve several, and a name in use would be taken over
        self._names = {model.name: f"saferedir-{service}-{index}" for index, model in enumerate(settings.models)}
        self._models: dict[str, RemoteModel] = {}
        self._ray: ModuleType | None = None
        self._serve: Any = None

    def __enter__(self) -> Self:
        address = self._settings.ray.address or None
        with environment({} if address else LOCAL_ENVIRONMENT):
            ray = require_extra("ray", "ray", "the engine ray")
            connect(ray, address, ServerError)
        self._ray, self._serve = ray, require_extra("ray.serve", "ray", "the engine ray")
        if address is None and ray.util.get_node_ip_address() != LOOPBACK:
            self.__exit__()
            raise ServerError(
                "Ray was imported before, so its processes would listen on the network; set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0."
            )
        self._serve.start(proxy_location="Disabled")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._ray is not None:
            for name in self._models:
                self._serve.delete(self._names[name], _blocking=False)
            self._ray.shutdown()
            self._ray = None

    def load(self, settings: ModelSettings) -> RemoteModel:
        """The model's deployment, made if it is not there; returns once a replica has loaded it."""
        assert self._ray is not None, "open it in a `with` block"
        with self._lock:
            if settings.name not in self._models:
                handle = self._serve.run(
                    self._deployment().bind(settings, self._load), name=self._names[settings.name], route_prefix=None,
                    blocking=False,
                )  # fmt: skip
                facts = _called(self._ray, handle.facts.remote)
                self._models[settings.name] = RemoteModel(self._ray, handle, facts)
            return self._models[settings.name]

    def _deployment(self) -> Any:
        ray = self._settings.ray
        return self._serve.deployment(Replica).options(
            max_ongoing_requests=1,
            health_check_period_s=HEALTH_SECONDS,
            ray_actor_options={"num_cpus": ray.cpus, "num_gpus": ray.gpus},
            autoscaling_config={
                "min_replicas": ray.min_replicas, "max_replicas": ray.max_replicas, "initial_replicas": ray.min_replicas,
                "target_ongoing_requests": ray.calls_per_replica, "downscale_delay_s": ray.downscale_delay,
            },
        )  # fmt: skip


def _called(ray: ModuleType, call: Any) -> Any:
    """What a call of a replica returns; again where its process died, and the error itself where the model raised."""
    for death in range(1, DEATHS + 1):
        try:
            return call().result(timeout_s=START_SECONDS)
        except ray.exceptions.RayActorError as error:  # of the replica, not of what runs in it
            if death == DEATHS:
                raise ServerError(
                    f"the replicas that were asked died, {DEATHS} in turn, so no image is shown."
                ) from error
            time.sleep(_PAUSE)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # without Ray's traceback, in which messages of others stand
    raise AssertionError
