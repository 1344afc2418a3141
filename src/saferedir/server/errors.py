"""What a client is answered instead of images: one class with a status, in the shape of OpenAI's errors.

Every message is written here or near the cause, and none repeats a prompt or a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saferedir.errors import SaferedirError

#: status -> OpenAI's type of error
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ServerError(SaferedirError):
    """The service cannot be started or used as asked."""


class ApiError(ServerError):
    """A request ends with this status.

    Attributes:
        status: of HTTP.
        code: a word for programs, such as "moderation_blocked".
        param: the field of the request that is at fault, or None.
        categories: the concepts for which a request was refused.
        headers: to send along, such as Retry-After.
        image_ids: of the audit records of the images that are not shown.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        categories: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        image_ids: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.categories, self.headers = tuple(categories), dict(headers or {})
        self.image_ids = tuple(image_ids)

    def body(self) -> dict[str, Any]:
        """The JSON that the client gets."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error: dict[str, Any] = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        if self.code == "moderation_blocked":
            error |= {
                "type": "image_generation_user_error",
                "categories": list(self.categories),
                "image_ids": list(self.image_ids),
            }
        return {"error": error}


def bad_request(message: str, code: str = "invalid_value", param: str | None = None) -> ApiError:
    """400: the request cannot be served as it is."""
    return ApiError(400, message, code, param=param)


def unavailable(message: str, code: str) -> ApiError:
    """503: the request was fine, but no guarded image can be made now."""
    return ApiError(503, message, code)


def too_many(message: str, code: str, seconds: float) -> ApiError:
    """429, with the whole seconds after which to try again."""
    return ApiError(429, message, code, headers={"Retry-After": str(max(1, round(seconds + 0.5)))})
