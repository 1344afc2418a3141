"""Settings of the service, read from a TOML file: models, guards, policies, keys, limits, audit.

Without a file, `default.toml` beside this one is read: the embedded model, guarded, on this machine only.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from saferedir.errors import GuardConfigError
from saferedir.policy.rules import Policy
from saferedir.server.errors import ServerError

DEFAULT_FILE = Path(__file__).with_name("default.toml")
PolicyName = Literal["redirect", "verify", "block"]
#: from weak to strict; a request may ask for more than its key's profile, never for less
STRICTNESS: tuple[PolicyName, ...] = ("redirect", "verify", "block")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{1,100}$")]
Size = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$")]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(_Table):
    """A model that is served, with the guards that are always on it.

    Attributes:
        name: what requests call it.
        source: "pictoworld", a diffusers folder or a hub id; default: the name.
        guards: packaged guards, folders or hub ids; at least one, or a policy in their place.
        policy: a policy's file (`saferedir.Policy`), relative to the configuration's, or its tables; what happens with each
            concept then stands there, and not in `on_unsafe` of a key's profile.
        verify: presets of judges (`saferedir judge list`) that check each finished image, beside the guards' own verdicts.
        steps: sampling steps.
        guidance: scale of classifier-free guidance.
        sizes: sizes that a request may ask for, the first of which is the default; none: the pipeline's own size only.
        strength: of image edits, in (0, 1]: the share of the steps that change the image.
        device: "auto", "cpu", "cuda", …
        dtype: "float32", "float16" or "bfloat16".
        unguarded: whether the playground may also show the bare model's image; None: the embedded one's,
            on loopback without keys.
    """

    name: Name
    source: str = ""
    guards: tuple[str, ...] = ()
    policy: dict[str, Any] | None = None
    verify: tuple[str, ...] = ()
    steps: Annotated[int, Field(ge=1, le=1000)] = 30
    guidance: Annotated[float, Field(ge=0)] = 4.0
    sizes: tuple[Size, ...] = ()
    strength: Annotated[float, Field(gt=0, le=1)] = 0.6
    device: str = "auto"
    dtype: str | None = None
    unguarded: bool | None = None

    @field_validator("policy", mode="before")
    @classmethod
    def _read_policy(cls, given: Any) -> Any:
        if given is None:
            return None
        try:
            return (Policy.from_file(given) if isinstance(given, str) else Policy.from_dict(given)).to_dict()
        except GuardConfigError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _check_guards(self) -> Self:
        if bool(self.guards) == bool(self.policy):
            raise ValueError(f"the model {self.name!r} needs guards, or a policy that names them, and not both")
        return self

    @property
    def pixels(self) -> list[tuple[int, int]]:
        """The sizes as (width, height)."""
        return [(int(width), int(height)) for width, _, height in (size.partition("x") for size in self.sizes)]

    @property
    def rules(self) -> Policy | None:
        """The policy, where there is one."""
        return None if self.policy is None else Policy.from_dict(self.policy)

    @property
    def guard_names(self) -> tuple[str, ...]:
        """What the guards are loaded by, each once."""
        rules = self.rules
        return self.guards if rules is None else tuple(dict.fromkeys(rule.guard for rule in rules.concepts))


class Profile(_Table):
    """What the holder of a key may do.

    Attributes:
        on_unsafe: the policy of `saferedir.protect`; a request may name a stricter one. Models with a policy file have that.
        policy_profile: the profile of the models' policy files that applies; "" for none.
        retries: how often an unsafe image is generated again under "verify".
        requests_per_minute: of one key.
        images_per_request: the largest `n`.
        models: those that may be used; none named: all.
        may_review: whether reports of others may be read and decided, and guards be trained by them; without keys everybody may.
    """

    on_unsafe: PolicyName = "verify"
    policy_profile: str = ""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    requests_per_minute: Annotated[float, Field(gt=0)] = 600.0
    images_per_request: Annotated[int, Field(ge=1, le=64)] = 10
    models: tuple[str, ...] = ()
    may_review: bool = False


class ApiKey(_Table):
    """A key, of which only the SHA-256 is kept; `saferedir serve --new-key NAME` makes one."""

    name: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    profile: str = "default"


class AuditSettings(_Table):
    """Where records are kept, and whether they hold prompts or only their SHA-256."""

    url: str = "sqlite:///runs/serve/audit.sqlite"
    prompts: Literal["hash", "text"] = "hash"

    def shown_url(self) -> str:
        """The URL without a password."""
        return re.sub(r"(//[^:/@]*):[^@/]*@", r"\1:***@", self.url)


class PlaygroundSettings(_Table):
    """The page at `/`, for people.

    Attributes:
        enabled: whether there is one; `saferedir serve --playground` says yes.
        bench: the newest report.html in this folder, or in one of its folders, is shown, its unguarded images too; "": `runs`
            without keys, and none with keys.
        gallery: how many of a visitor's latest images the page keeps, in memory.
    """

    enabled: bool = False
    bench: str = ""
    gallery: Annotated[int, Field(ge=0, le=100)] = 12


class ProvenanceSettings(_Table):
    """What is put into images beside a PNG's text, after the policy has passed them.

    Attributes:
        certificate: file of the chain that signs content credentials (C2PA, extra `c2pa`), in PEM, the signer's first; "test" for
            one that proves nothing, made when the service starts; "" for none.
        private_key: its key's file, in PEM.
        algorithm: of the key.
        watermark: "wavelet" (extra `watermark`) or the name of another plug-in (`server/watermark.py`); "" for none.
    """

    certificate: str = ""
    private_key: str = ""
    algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = "es256"
    watermark: str = ""


class ReportSettings(_Table):
    """What becomes of reports.

    Attributes:
        folder: for the guards that are trained by them.
        pairs: concept -> file of the prompt pairs that its guard was made from; the embedded world's are known.
        training: fields of SafeRedir's `TrainConfig` that are not the default.
        n: prompts in each bench cell before and after.
    """

    folder: str = "runs/serve/reports"
    pairs: dict[str, str] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    n: Annotated[int, Field(ge=1)] = 50


class RaySettings(_Table):
    """Of `saferedir serve --engine ray`: how many replicas each model has, and what each takes.

    Attributes:
        address: a cluster to join ("auto", "host:port"); default: one on this machine, ended with the service.
        min_replicas, max_replicas: of each model; between them Ray Serve decides by the calls that wait.
        cpus, gpus: that a replica reserves; a GPU may be shared (0.5).
        calls_per_replica: calls under way or waiting, of a replica, from which on another one is started.
        downscale_delay: seconds for which a replica has nothing to do before it may end.
    """

    address: str = ""
    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=256)] = 2
    cpus: Annotated[float, Field(gt=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    calls_per_replica: Annotated[float, Field(gt=0)] = 1.0
    downscale_delay: Annotated[float, Field(ge=0)] = 300.0

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is more than max_replicas")
        return self


class Limits(_Table):
    """Bounds on what clients send and on what waits.

    Attributes:
        queue: images that may wait for one model; more are answered 429.
        queue_share: of them, those that one key may have; default: half where there are several keys, else all.
        batch: images in one pipeline call.
        batch_wait: seconds for which a pipeline call waits for more images of its kind.
        deadline: seconds after which a request is given up.
        shutdown: seconds for which a service that is to stop finishes what runs.
        body_mb: size of a request's body, in 10^6 bytes.
        pixels: width times height of an image that a client sends.
        pixels_waiting: of the images that all clients have sent and that are not answered yet; more are answered 429.
        prompt: characters of a prompt.
        memory_gb: for the weights of all loaded models; the one used least recently goes first. None: no bound.
        idempotency_s: seconds for which the answer to an Idempotency-Key is kept.
    """

    queue: Annotated[int, Field(ge=1)] = 256
    queue_share: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] = 8
    batch_wait: Annotated[float, Field(ge=0, le=10)] = 0.02
    deadline: Annotated[float, Field(gt=0)] = 300.0
    shutdown: Annotated[float, Field(gt=0)] = 30.0
    body_mb: Annotated[float, Field(gt=0)] = 20.0
    pixels: Annotated[int, Field(ge=1)] = 16_000_000
    pixels_waiting: Annotated[int, Field(ge=1)] = 256_000_000
    prompt: Annotated[int, Field(ge=1)] = 4000
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    idempotency_s: Annotated[float, Field(gt=0)] = 600.0


class Settings(_Table):
    """All of it; the first model is the one that requests without `model` get."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    models: Annotated[tuple[ModelSettings, ...], Field(min_length=1)]
    profiles: dict[str, Profile] = Field(default_factory=lambda: {"default": Profile()})
    keys: tuple[ApiKey, ...] = ()
    audit: AuditSettings = AuditSettings()
    ray: RaySettings = RaySettings()
    limits: Limits = Limits()
    playground: PlaygroundSettings = PlaygroundSettings()
    reports: ReportSettings = ReportSettings()
    provenance: ProvenanceSettings = ProvenanceSettings()

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for what, names in (
            ("model", [model.name for model in self.models]),
            ("key", [key.name for key in self.keys]),
            ("key's sha256", [key.sha256 for key in self.keys]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"a {what} is there twice")
        if self.limits.pixels > self.limits.pixels_waiting:
            raise ValueError(
                "limits.pixels is more than limits.pixels_waiting, so that no image of that size could be taken"
            )
        if "default" not in self.profiles:
            raise ValueError("there is no [profiles.default]")
        for key in self.keys:
            if key.profile not in self.profiles:
                raise ValueError(f"key {key.name!r} has the profile {key.profile!r}, which is not among [profiles]")
        known = {model.name for model in self.models}
        for name, profile in self.profiles.items():
            if unknown := sorted(set(profile.models) - known):
                raise ValueError(f"profile {name!r} has the model {unknown[0]!r}, which is not among [[models]]")
            usable = [model for model in self.models if not profile.models or model.name in profile.models]
            files = [model.rules for model in usable if model.rules is not None]
            wanted = profile.policy_profile
            if wanted and (not files or any(wanted not in file.profiles for file in files)):
                raise ValueError(
                    f"profile {name!r} has the policy_profile {wanted!r}, which is not in its models' policies"
                )
        return self

    @property
    def queue_share(self) -> int:
        """How many images of one key may wait for a model."""
        limits = self.limits
        share = limits.queue_share if limits.queue_share is not None else -(-limits.queue // (1 + (len(self.keys) > 1)))
        return min(share, limits.queue)

    def model(self, name: str) -> ModelSettings | None:
        """The model of that name, or None."""
        return next((model for model in self.models if model.name == name), None)

    def changed(self, **values: Any) -> Settings:
        """These settings with some in another value (None: as it is), checked again."""
        given = {name: value for name, value in values.items() if value is not None}
        return _validated({**self.model_dump(), **given}, "the options")

    def allows_unguarded(self, model: ModelSettings) -> bool:
        """Whether the playground may show this model's image without guards, too."""
        if model.unguarded is not None:
            return model.unguarded
        return (model.source or model.name) == "pictoworld" and is_loopback(self.host) and not self.keys

    def check_address(self) -> None:
        """Raise ServerError where strangers could reach a service without keys."""
        if not self.keys and not is_loopback(self.host):
            raise ServerError(
                f"host is {self.host!r} and there are no keys, so that anybody could use this service; bind it to 127.0.0.1, or "
                "add [[keys]] to the configuration (`saferedir serve --new-key NAME` makes one)."
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_settings(file: Path | None = None) -> Settings:
    """The settings in a TOML file; None for the default.

    Raises:
        ServerError: it cannot be read, or a value is not what is expected; the message names both.
    """
    path = DEFAULT_FILE if file is None else file
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ServerError(f"{path} cannot be read as TOML ({error}).") from error
    for model in values.get("models", ()) if isinstance(values.get("models"), list) else ():
        if isinstance(model, dict) and isinstance(model.get("policy"), str):
            model["policy"] = str(path.parent / Path(model["policy"]).expanduser())
    return _validated(values, str(path))


def _validated(values: dict[str, Any], where: str) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in first["loc"]) or "the file"
        reason = first["msg"].removeprefix("Value error, ")
        raise ServerError(f"{where}: {path}: {reason[:1].lower()}{reason[1:]}; see docs/server.md.") from None
