"""Queue and worker by themselves: whose turn it is, whose fault it is, and who holds how much memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.served import FACTS, ScriptedModel, wait_for

from saferedir import GuardError
from saferedir.server.config import Limits, ModelSettings, Settings
from saferedir.server.engine.host import ModelHost
from saferedir.server.engine.rows import CallKey, Outcome, QueueFull, Row, RowQueue
from saferedir.server.engine.worker import Worker
from saferedir.server.errors import ServerError

KEY, OTHER = CallKey("generate", "verify", 2, (16, 16)), CallKey("check", "redirect", 0)


def rows_of(caller: str, count: int, key: CallKey = KEY, prompt: str = "a circle") -> list[Row]:
    return [Row(key, prompt, number, time.monotonic() + 60, caller=caller) for number in range(count)]


# --- whose turn it is


def test_one_caller_cannot_fill_the_queue() -> None:
    queue = RowQueue(8, 4)
    queue.put(rows_of("greedy", 4))
    with pytest.raises(QueueFull) as caught:
        queue.put(rows_of("greedy", 1))
    assert caught.value.is_callers
    queue.put(rows_of("other", 4))
    with pytest.raises(QueueFull) as caught:
        queue.put(rows_of("third", 1))
    assert not caught.value.is_callers


@pytest.mark.parametrize("key", [KEY, OTHER], ids=["the same call", "another kind"])
def test_who_asks_for_little_does_not_wait_for_who_asks_for_much(key: CallKey) -> None:
    queue = RowQueue(100)
    queue.put(rows_of("greedy", 60))
    first = queue.take(8, 0.0, 0.0)
    queue.put(rows_of("modest", 2, key))
    second = queue.take(8, 0.0, 0.0)
    assert len(first) == 8 and sum(row.caller == "modest" for row in second) == 2


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 5), st.sampled_from([KEY, OTHER])), min_size=1, max_size=12
    ),
    st.integers(1, 8),
)
def test_every_row_comes_once_in_its_callers_order(puts: list[tuple[str, int, CallKey]], most: int) -> None:
    queue, put = RowQueue(1000), []
    for caller, count, key in puts:
        rows = rows_of(caller, count, key)
        queue.put(rows)
        put += rows
    taken: list[Row] = []
    waits: dict[str, int] = {}
    while len(queue):
        waiting = {row.caller for row in queue._rows}
        rows = queue.take(most, 0.0, 0.0)
        assert 1 <= len(rows) <= most and len({row.key for row in rows}) == 1
        served = {rows[0].caller}
        for caller in waiting - served:
            waits[caller] = waits.get(caller, 0) + 1
            assert waits[caller] < 3  # with three callers, each begins every third call
        waits.update(dict.fromkeys(served, 0))
        taken += rows
    assert sorted(map(id, taken)) == sorted(map(id, put))
    for caller in "abc":
        for key in (KEY, OTHER):
            of_one = [id(row) for row in put if (row.caller, row.key) == (caller, key)]
            assert [id(row) for row in taken if (row.caller, row.key) == (caller, key)] == of_one


# --- whose fault it is


@contextmanager
def running_worker(model: Any, batch: int) -> Iterator[Worker]:
    settings = ModelSettings(name="scripted", guards=("plain/star",))
    worker = Worker(settings, lambda _: model, Limits(batch=batch, batch_wait=0.0), lambda worker, needed: None)
    yield worker
    worker.close()
    worker.join(10)


@pytest.mark.parametrize("at_fault", [(), (0,), (5,), (7,), (0, 1), tuple(range(8))])
def test_a_row_at_fault_is_isolated_in_few_calls(at_fault: tuple[int, ...]) -> None:
    model = ScriptedModel()
    rows = [rows_of("a", 1, prompt="raise" if number in at_fault else "a circle")[0] for number in range(8)]
    with running_worker(model, 8) as worker:
        worker.queue.put(rows)
        worker.start()
        errors = [row.future.exception(10) for row in rows]
    assert [number for number, error in enumerate(errors) if error is not None] == list(at_fault)
    assert all(isinstance(errors[number], GuardError) for number in at_fault)
    assert len(model.calls) == 1 if not at_fault else len(model.calls) <= 7  # 1 + 2 log2(8)


# --- memory


class Counted(ScriptedModel):
    """Counts those that hold memory at one time."""

    def __init__(self, alive: list[Any]) -> None:
        super().__init__()
        self.alive = alive
        alive.append(self)

    def run(self, key: CallKey, rows: Sequence[Row]) -> list[Outcome]:
        return super().run(key, rows)

    def close(self) -> None:
        super().close()
        self.alive.remove(self)


def settings_of(names: str, gigabytes: float) -> Settings:
    return Settings.model_validate(
        {"models": [{"name": name, "guards": ["plain/star"]} for name in names],
         "limits": {"memory_gb": gigabytes, "batch_wait": 0.0}}
    )  # fmt: skip


def test_a_model_that_works_is_kept_and_its_memory_is_not_lost() -> None:
    """One model fits. The other is asked for while it works: refused; afterwards both come and go as before."""
    alive: list[Counted] = []
    gate = threading.Event()

    def load(settings: ModelSettings) -> Counted:
        model = Counted(alive)
        model.gate = gate
        return model

    host = ModelHost(settings_of("ab", 1.5e-6), load, unloading=0.3)
    host.start()
    try:
        (busy,) = rows_of("x", 1, prompt="wait")
        host.submit("a", [busy])
        wait_for(lambda: host.workers["a"].busy_since is not None and alive and alive[0].calls)
        (refused,) = rows_of("x", 1)
        host.submit("b", [refused])
        assert isinstance(refused.future.exception(10), ServerError)
        assert host.facts("a") is not None and host._held == {"a": FACTS.bytes}
        gate.set()
        busy.future.result(10)
        (again,) = rows_of("x", 1)
        host.submit("a", [again])
        again.future.result(10)
        assert len(alive) == 1  # it was not loaded anew
        for name in "baabba":
            (row,) = rows_of("x", 1)
            host.submit(name, [row])
            row.future.result(10)
            assert len(alive) == 1 and host._held == {name: FACTS.bytes}
    finally:
        host.close()
    assert not alive


def test_a_model_too_large_for_the_budget_unloads_nobody() -> None:
    alive: list[Counted] = []

    def load(settings: ModelSettings) -> Counted:
        model = Counted(alive)
        if settings.name == "b":
            from dataclasses import replace

            model.facts = replace(FACTS, bytes=10_000)
        return model

    host = ModelHost(settings_of("ab", 1.5e-6), load, unloading=0.3)
    host.start()
    try:
        wait_for(lambda: host.facts("a") is not None)
        (row,) = rows_of("x", 1)
        host.submit("b", [row])
        assert isinstance(row.future.exception(10), ServerError)
        assert host.facts("a") is not None and host._held == {"a": FACTS.bytes} and len(alive) == 1
    finally:
        host.close()


def test_it_is_not_ready_while_the_first_model_is_loaded() -> None:
    gate = threading.Event()

    def load(settings: ModelSettings) -> ScriptedModel:
        gate.wait(10)
        return ScriptedModel()

    host = ModelHost(settings_of("ab", 1.0), load)
    host.start()
    try:
        assert host.problem(60) == "model a: it is being loaded"
        gate.set()
        wait_for(lambda: host.problem(60) is None)
        assert host.facts("b") is None  # which is loaded when it is asked for
    finally:
        host.close()
