"""Bodies of requests and answers, as pydantic models; the OpenAPI schema is made from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from saferedir.server.config import PolicyName

#: of OpenAI's API; those that this service does not make are refused by name
OutputFormat = Literal["png", "webp", "jpeg"]
MAX_SEED = 2**63 - 1


def _check_text(text: str) -> str:
    if "\0" in text:
        raise ValueError("it holds a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is no character") from None
    return text


def _check_words(text: str) -> str:
    if not text.strip():
        raise ValueError("it has no words")
    return text


Text = Annotated[str, AfterValidator(_check_text)]
#: the service's own limit (`limits.prompt`) is checked later
Prompt = Annotated[
    str, Field(min_length=1, max_length=100_000), AfterValidator(_check_text), AfterValidator(_check_words)
]
Identifier = Annotated[str, Field(max_length=512), AfterValidator(_check_text)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ImageOptions(_Request):
    """What generations and edits share.

    Attributes:
        model: default: the first of the configuration.
        n: number of images; if one of them is refused, the request is.
        size: WIDTHxHEIGHT out of the model's, or "auto".
        output_compression: quality in per cent of webp and jpeg.
        moderation: accepted; neither value is weaker than the key's profile.
        stream: answer with server-sent events; there are no partial images, for nothing has checked them.
        response_format: "url" is refused, the service keeps no images.
        policy: stricter than the key's profile; an addition to OpenAI's API.
        seed: of the first image's noise, the next have seed + 1, …; an addition, too.
    """

    prompt: Prompt
    model: Annotated[str, Field(max_length=200)] | None = None
    n: Annotated[int, Field(ge=1, le=64)] | None = 1
    size: Annotated[str, Field(max_length=20)] | None = "auto"
    output_format: OutputFormat | None = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = 100
    background: Literal["auto", "opaque"] | None = "auto"
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = "auto"
    stream: bool | None = False
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = 0
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    safety_identifier: Identifier | None = None
    user: Identifier | None = None
    policy: PolicyName | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED - 64)] | None = None


class GenerationRequest(ImageOptions):
    """POST /v1/images/generations."""

    moderation: Literal["auto", "low"] | None = "auto"
    style: Literal["vivid", "natural"] | None = None


class EditRequest(ImageOptions):
    """POST /v1/images/edits, without its image, which is a file of the form."""

    input_fidelity: Literal["high", "low"] | None = None
    moderation: Literal["auto", "low"] | None = "auto"


class GuardVerdict(BaseModel):
    """What one guard made of an image."""

    guard: str
    concept: str
    outcome: str
    category: str = ""
    grade: str = ""
    prompt_score: float | None = None
    image_score: float | None = None


class ImageItem(BaseModel):
    """An image; `id` is that of its audit record."""

    b64_json: str
    id: str
    seed: int
    sha256: str
    guards: list[GuardVerdict]


class ImagesAnswer(BaseModel):
    """OpenAI's ImagesResponse, with a few more facts in each item."""

    created: int
    background: Literal["opaque"] = "opaque"
    data: list[ImageItem]
    output_format: OutputFormat
    quality: str = "auto"
    size: str
    model: str
    policy: str


class _Part(_Request):
    pass


class TextPart(_Part):
    """A text to be moderated."""

    type: Literal["text"]
    text: Prompt


class ImageUrl(_Part):
    """An image as a data: URL; no other is opened."""

    url: str


class ImagePart(_Part):
    """An image to be moderated."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ModerationRequest(_Request):
    """POST /v1/moderations: a text, several, or parts that are judged as one."""

    input: (
        Prompt
        | Annotated[list[Prompt], Field(min_length=1, max_length=32)]
        | Annotated[list[Part], Field(min_length=1, max_length=32)]
    )
    model: Annotated[str, Field(max_length=200)] | None = None


class ModerationResult(BaseModel):
    """Categories are the concepts of the model's guards and judges; a score of 0.5 is the threshold."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text", "image"]]]


class ModerationAnswer(BaseModel):
    """OpenAI's answer."""

    id: str
    model: str
    results: list[ModerationResult]


class CheckRequest(_Request):
    """POST /v1/checks: what the guards say to a prompt, without an image."""

    prompt: Prompt
    model: Annotated[str, Field(max_length=200)] | None = None
    policy: PolicyName | None = None


class TokenStrength(BaseModel):
    """How far a guard would move a token's embedding, relative to its length."""

    token: str
    strength: float


class CheckedGuard(GuardVerdict):
    """One guard's verdict on a prompt."""

    threshold: float | None = None
    acts: bool
    tokens: list[TokenStrength] = []


class CheckAnswer(BaseModel):
    """`status` is "blocked" where the policy blocks every image on which a guard acts, and one would, or the prompt's grade.

    Attributes:
        categories: of what blocks it: categories of a policy file, or concepts where there are none.
    """

    status: Literal["passed", "modified", "blocked"]
    model: str
    policy: str
    categories: list[str] = []
    guards: list[CheckedGuard]


class ReportRequest(_Request):
    """POST /v1/reports: what is wrong with an image.

    Attributes:
        image_id: `id` of an image, or one of the `image_ids` of a refusal.
        problem: the concept is there ("missed"), it was refused or changed without reason ("false_alarm"), or another.
        concept: default: the one guard's that the image has.
        prompt: where the audit keeps hashes only, a reviewer cannot learn it elsewhere; it must be the image's.
    """

    image_id: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_check_text)]
    problem: Literal["missed", "false_alarm", "other"]
    concept: Annotated[str, Field(max_length=200), AfterValidator(_check_text)] | None = None
    note: Annotated[str, Field(max_length=4000), AfterValidator(_check_text)] = ""
    prompt: Prompt | None = None


class ReportAnswer(BaseModel):
    """A report that waits for a reviewer."""

    id: str
    status: Literal["open", "accepted", "rejected"]
    image_id: str
    concept: str


class ModelItem(BaseModel):
    """A model, as OpenAI lists them."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "saferedir"
    loaded: bool
    sizes: list[str]


class ModelsAnswer(BaseModel):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelItem]


class GuardItem(BaseModel):
    """A guard on a model; what it is made of is known once the model is loaded."""

    id: str
    model: str
    method: str | None = None
    concept: str | None = None
    fingerprint: str | None = None
    reads_prompts: bool | None = None
    reads_images: bool | None = None


class GuardsAnswer(BaseModel):
    """GET /v1/guards."""

    object: Literal["list"] = "list"
    data: list[GuardItem]


class PolicyItem(BaseModel):
    """A model's policy file under the caller's profile: what happens with each concept."""

    model: str
    name: str
    version: int
    fingerprint: str
    profile: str
    actions: dict[str, str]


class PoliciesAnswer(BaseModel):
    """GET /v1/policies: the caller's own, and the stricter ones that a request may name; `files` of the models that have one."""

    profile: PolicyName
    retries: int
    allowed: list[PolicyName]
    requests_per_minute: float
    images_per_request: int
    files: list[PolicyItem] = []


class Health(BaseModel):
    """GET /healthz and /readyz."""

    status: Literal["ok", "not ready"]
    reason: str | None = None


class ErrorBody(BaseModel):
    """OpenAI's error; `categories` and `image_ids` (of audit records) only where code is "moderation_blocked"."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    categories: list[str] | None = None
    image_ids: list[str] | None = None


class ErrorAnswer(BaseModel):
    """What every answer but 2xx holds."""

    error: ErrorBody


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Of a route, for the OpenAPI schema."""
    return {status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 413, 429, 503, *statuses)}
