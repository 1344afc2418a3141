"""Processes for tests that kill or stop one: forked from a process that has imported the library, which takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

#: imported once, by the process that all others are forked from
_IMPORTED = [
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "saferedir.attach",
    "saferedir.bench.bench",
    "saferedir.bench.runner",
    "saferedir.cli",
    "saferedir.pictoworld.judge",
    "saferedir.server.running",
    "tests.forked",
    "tests.server.served",
]
_CONTEXT = multiprocessing.get_context("forkserver")


def start(target: Callable[..., object], *args: Any, log: Path | None = None) -> BaseProcess:
    """A running process that calls `target`, a function of a module; what it prints goes to `log`."""
    _ensure_running()
    process = _CONTEXT.Process(target=_run, args=(target, args, log), daemon=True)
    process.start()
    return process


def _ensure_running() -> None:
    """Start the process with the imports, unless it runs; it knows this one's path, and one thread."""
    _CONTEXT.set_forkserver_preload(_IMPORTED)
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "OMP_NUM_THREADS")}
    os.environ.update({"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"})
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run(target: Callable[..., object], args: tuple[Any, ...], log: Path | None) -> None:
    if log is not None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
    torch.set_num_threads(1)
    target(*args)
