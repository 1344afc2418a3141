"""Who a request comes from, and how often it may come: hashed API keys and a rate limit for each."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from saferedir.server.config import Profile, Settings
from saferedir.server.errors import ApiError, too_many

#: name of the caller of a service without keys, in records
LOCAL = "local"


@dataclass(frozen=True)
class Caller:
    """A key's name and what its holder may do."""

    name: str
    profile: Profile
    is_local: bool = False  # of a service without keys, which only its own machine reaches

    @property
    def may_review(self) -> bool:
        """Whether reports of others may be read and decided."""
        return self.profile.may_review or self.is_local


def new_key() -> tuple[str, str]:
    """A random key, and the SHA-256 to write into the configuration."""
    key = f"sk-{secrets.token_urlsafe(32)}"
    return key, hash_of(key)


def hash_of(key: str) -> str:
    """SHA-256 of a key, in hexadecimal digits."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class Callers:
    """Finds the caller of a request by its key; every key is compared, each in constant time."""

    def __init__(self, settings: Settings) -> None:
        self._keys = {key.sha256: Caller(key.name, settings.profiles[key.profile]) for key in settings.keys}
        self._local = None if settings.keys else Caller(LOCAL, settings.profiles["default"], is_local=True)

    def of(self, authorization: str | None) -> Caller:
        """The caller whose key is in an Authorization header; ApiError 401 without a known one."""
        if self._local is not None:
            return self._local
        scheme, _, key = (authorization or "").partition(" ")
        digest = hash_of(key.strip())
        matches = [caller for known, caller in self._keys.items() if hmac.compare_digest(known, digest)]
        if scheme.lower() != "bearer" or not matches:
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, "Give a known key as 'Authorization: Bearer KEY'.", "invalid_api_key", headers=headers)
        return matches[0]


@dataclass
class _Bucket:
    tokens: float
    at: float
    lock: threading.Lock = field(default_factory=threading.Lock)


class RateLimit:
    """A bucket of requests for each key, which fills up again over a minute; the clock is one that never jumps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def spend(self, caller: Caller) -> None:
        """Take one request of the caller's, or ApiError 429 with the seconds until there is one again."""
        rate, now = caller.profile.requests_per_minute, self._clock()
        bucket = self._buckets.setdefault(caller.name, _Bucket(rate, now))
        with bucket.lock:
            most = max(rate, 1.0)
            bucket.tokens = min(most, bucket.tokens + max(now - bucket.at, 0.0) * rate / 60)
            bucket.at = now
            if bucket.tokens < 1:
                raise too_many(
                    f"This key may send {rate:g} requests a minute; wait, or ask for another profile.",
                    "rate_limit_exceeded",
                    (1 - bucket.tokens) * 60 / rate,
                )
            bucket.tokens -= 1
