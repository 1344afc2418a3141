"""Edits of weights on pictoworld-flux: baked they generate what they do as guards, and SafeRedir goes on top of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from typer.testing import CliRunner

import saferedir as sr
from saferedir.cli import app
from saferedir.guard import Guard
from saferedir.pictoworld.world2.evaluation import generate

TEXTS = ["a red star left of a striped blue ring", "a green heart on a sand background"]
QUICK: dict[str, Any] = {"num_inference_steps": 3, "seed": 5}


@pytest.mark.parametrize("name", ["world2/star-2-uce", "world2/star-2-esd", "world2/star-2-duo"])
def test_a_baked_edit_generates_what_its_guard_does_and_saferedir_goes_on_top(name: str, tmp_path: Path) -> None:
    pipe, edit = sr.load_pipeline("pictoworld-flux"), Guard.from_pretrained(name)
    plain, edited, both = (
        generate(pipe, TEXTS, guards=guards, **QUICK)
        for guards in ([], [edit], [edit, Guard.from_pretrained("world2/star-2")])
    )
    assert (edited.images[0] - plain.images[0]).abs().max() > 0.1
    assert not torch.equal(both.images[0], plain.images[0]) and torch.equal(both.images[1], edited.images[1])

    folder = tmp_path / "baked"
    words = ["bake", "--guard", name, "--model", "pictoworld-flux", "--out", str(folder)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    baked = diffusers.FluxPipeline.from_pretrained(folder)
    torch.testing.assert_close(generate(baked, TEXTS, **QUICK).images, edited.images, atol=2e-3, rtol=0)
