"""Requests that schemathesis makes up from the service's own schema: no crash, no status that the schema does not name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.server.served import Served, served

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    rate = {"default": {"requests_per_minute": 1e6}}
    with served(tmp_path_factory.mktemp("schema"), profiles=rate, limits={"batch_wait": 0.0}) as running:
        yield running
        kinds = {key.kind for key, _ in running.model.calls}
        assert {"generate", "edit", "check"} <= kinds, kinds  # they came through


OPERATIONS = [
    ("/v1/images/generations", "POST"), ("/v1/images/edits", "POST"), ("/v1/moderations", "POST"), ("/v1/checks", "POST"),
    ("/v1/models", "GET"), ("/v1/models/{model}", "GET"),
    ("/v1/guards", "GET"), ("/v1/policies", "GET"), ("/v1/reports", "POST"), ("/healthz", "GET"), ("/readyz", "GET"),
    ("/metrics", "GET"),
]  # fmt: skip


@pytest.fixture(scope="module")
def schema(service: Served) -> Any:
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json")


def test_every_operation_is_among_them(schema: Any) -> None:
    operations = [result.ok() for result in schema.get_all_operations()]
    assert sorted((operation.path, operation.method.upper()) for operation in operations) == sorted(OPERATIONS)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fitting", "unfitting"])
@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=[path for path, _ in OPERATIONS])
def test_every_answer_is_in_the_schema(schema: Any, path: str, method: str, mode: GenerationMode) -> None:
    if mode is GenerationMode.NEGATIVE and method == "GET":
        return  # nothing in it can be unfitting

    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=8 if method == "POST" else 1, deadline=None, derandomize=True, database=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def answers(case: Any) -> None:
        case.call_and_validate(checks=CHECKS, timeout=30)

    answers()
