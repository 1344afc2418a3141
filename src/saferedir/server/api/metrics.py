"""Counts for Prometheus, in a registry of the service's own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

#: routes that have a label of their own; anything else that clients invent is "other"
ROUTES = (
    "/v1/images/generations", "/v1/images/edits", "/v1/moderations", "/v1/checks", "/v1/models", "/v1/guards", "/v1/policies",
    "/v1/reports", "/healthz", "/readyz", "/metrics",
)  # fmt: skip


class Metrics:
    """What is counted; none of it is about a person or a prompt."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("saferedir_requests", "Requests.", ["route", "status"], registry=self.registry)
        self.images = Counter(
            "saferedir_images", "Images, by what became of them.", ["model", "action"], registry=self.registry
        )
        self.seconds = Histogram(
            "saferedir_request_seconds", "Seconds of a request.", ["route"], registry=self.registry
        )
        self.batches = Histogram(
            "saferedir_batch_rows", "Images in one pipeline call.", ["model"], buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )  # fmt: skip
        self.waiting = Gauge("saferedir_waiting", "Images that wait.", ["model"], registry=self.registry)
        self._seconds_a_row: dict[str, float] = {}

    def on_batch(self, model: str, rows: int, seconds: float) -> None:
        """One pipeline call has ended."""
        self.batches.labels(model).observe(rows)
        self._seconds_a_row[model] = seconds / rows

    def seconds_a_row(self, model: str) -> float:
        """Of the latest call; 1 before there was one."""
        return self._seconds_a_row.get(model, 1.0)

    def text(self) -> bytes:
        """All of it in Prometheus's format."""
        return generate_latest(self.registry)


def route_label(path: str) -> str:
    """The path as a label of few values."""
    return path if path in ROUTES else "other"
