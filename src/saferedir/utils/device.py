"""Values on a device: read without waiting for each one, and refused over later where reading would wait.

A value on the CPU is read at once. One on another device is read only when the work queued before it is done, so that a run
which reads at every step stands still at every step. Inside `Collecting` nothing is read: `refuse` and `refuse_nonfinite`
keep one number on the device for each check, and `Pending.settle` reads them all together, before an image leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

#: what a check raises
MakeError = Callable[[], Exception]


class Pending:
    """Checks of one run whose outcome is still on the device.

    Attributes:
        is_eager: whether values are read at once on every device (something else in the run waits for them anyway).
    """

    def __init__(self, *, is_eager: bool = False) -> None:
        self.is_eager = is_eager
        self._flags: list[tuple[Tensor, MakeError]] = []
        self._sizes: list[tuple[Tensor, MakeError]] = []
        self._failed: Exception | None = None

    def add_flag(self, bad: Tensor, error: MakeError) -> None:
        """A check that fails where `bad`, of no dimension, is true."""
        self._flags.append((bad, error))

    def add_size(self, size: Tensor, error: MakeError) -> None:
        """A check that fails where `size`, of no dimension, is NaN or infinite."""
        self._sizes.append((size, error))

    def settle(self) -> None:
        """Read every outcome, in one copy for a device, and raise the error of the first check that failed.

        Once one has failed, every later call raises, too: whoever kept the error to himself lets no image out.
        """
        self.settle_with()

    def settle_with(self, *values: Tensor) -> list[Tensor]:
        """As `settle`, and `values` on the host, which come in the same copy."""
        if self._failed is not None:
            raise self._failed
        flags, sizes = self._flags, self._sizes
        self._flags, self._sizes = [], []
        groups = [*_stacked([flag for flag, _ in flags]), *_stacked([size for size, _ in sizes])]
        host = _copied([*(group for group, _ in groups), *values])
        for (group, positions), outcome in zip(groups, host, strict=False):
            checks = flags if group.dtype == torch.bool else sizes
            for position, value in zip(positions, outcome.tolist(), strict=True):
                is_bad = value if group.dtype == torch.bool else not math.isfinite(value)
                if is_bad:
                    self._failed = checks[position][1]()
                    raise self._failed
        return host[len(groups) :]


_PENDING: ContextVar[Pending | None] = ContextVar("saferedir_pending", default=None)
_IS_REHEARSAL: ContextVar[bool] = ContextVar("saferedir_rehearsal", default=False)


class Collecting:
    """Inside, checks of values that are not on the CPU are kept in `pending`."""

    __slots__ = ("_pending", "_token")

    def __init__(self, pending: Pending) -> None:
        self._pending = pending

    def __enter__(self) -> None:
        self._token = _PENDING.set(self._pending)

    def __exit__(self, *raised: object) -> None:
        _PENDING.reset(self._token)


@contextmanager
def rehearsal() -> Iterator[None]:
    """Inside, values on the CPU are treated as if they were on another device. For tests."""
    token = _IS_REHEARSAL.set(True)
    try:
        yield
    finally:
        _IS_REHEARSAL.reset(token)


def is_readable(value: Tensor) -> bool:
    """Whether reading `value` now makes nothing wait that should not: it is on the CPU, or no run is under way."""
    pending = _PENDING.get()
    return pending is None or pending.is_eager or (value.device.type == "cpu" and not _IS_REHEARSAL.get())


def may_hold(flags: Tensor) -> bool:
    """False only where it is known without waiting that no flag is set."""
    return not is_readable(flags) or bool(flags.any())


def refuse(bad: Tensor, error: MakeError) -> None:
    """Raise `error()` if a flag of `bad` is set: now, or where that would wait, at the end of the run.

    Args:
        bad: flags of any shape.
        error: makes the exception; it may read values, for its sentence.
    """
    if is_readable(bad):
        if bool(bad.any()):
            raise error()
        return
    pending = _PENDING.get()
    assert pending is not None
    pending.add_flag(bad.detach().any(), error)


def refuse_nonfinite(values: Tensor, error: MakeError) -> None:
    """Raise `error()` if `values` hold NaN or infinity, now or at the end of the run."""
    if not is_readable(values):
        pending = _PENDING.get()
        assert pending is not None
        pending.add_size(torch.linalg.vector_norm(values.detach(), math.inf), error)
        return
    # one finite sum proves all finite; a sum that is not may have overflowed
    if not math.isfinite(values.detach().sum(dtype=torch.float32).item()) and not bool(torch.isfinite(values).all()):
        raise error()


def to_host(*values: Tensor) -> list[Tensor]:
    """Copies of `values` on the CPU, themselves where they are there: one copy for all of one device.

    The outcomes of a run's pending checks come in the same copy, and a failed one raises.
    """
    pending = _PENDING.get()
    return _copied(values) if pending is None else pending.settle_with(*values)


def read_together(*values: Tensor) -> list[Tensor]:
    """As `to_host`, before a run: pending checks stay where they are."""
    return _copied(values)


def _stacked(values: Sequence[Tensor]) -> list[tuple[Tensor, list[int]]]:
    """Values of no dimension as one tensor for each type and device, with the positions that they had."""
    groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for position, value in enumerate(values):
        groups.setdefault((value.dtype, value.device), []).append(position)
    return [(torch.stack([values[position] for position in positions]), positions) for positions in groups.values()]


def _copied(values: Sequence[Tensor]) -> list[Tensor]:
    answers = [value.detach() for value in values]
    for device in {value.device for value in values if value.device.type != "cpu"}:
        chosen = [index for index, value in enumerate(values) if value.device == device]
        parts = [answers[index].contiguous().view(-1).view(torch.uint8) for index in chosen]
        copied = torch.cat(parts).cpu().split([len(part) for part in parts])
        for index, part in zip(chosen, copied, strict=True):
            like = answers[index]
            # a copy of its own: another type needs its own alignment
            answers[index] = part.clone().view(like.dtype).view(like.shape)
    return answers
