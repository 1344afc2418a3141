"""Guards of many concepts with one trunk, merged: no score changes by a bit; what shares no trunk is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import saferedir as sr
from saferedir.cli import app
from saferedir.errors import GuardConfigError
from saferedir.guards.merging import merged
from saferedir.guards.saferedir.network import Redirector, RedirectorConfig
from saferedir.guards.saferedir.rows import BLOCK, with_concept
from saferedir.guards.saferedir_many import SafeRedirMany, SafeRedirManyConfig

SIZES: dict[str, Any] = {
    "prompt_dim": 8, "width": 16, "heads": 2, "hidden": 16, "latent_widths": (8, 8), "latent_strides": (1, 2), "rank": 4,
    "t_dim": 8, "row_heads": True, "has_joint": False,
}  # fmt: skip


def grown(*concepts: str, start: int = 2, trunk: int = 0, **more: Any) -> SafeRedirMany:
    """A guard whose first `start` concepts and trunk are always the same, and whose other rows come from their names."""
    with torch.random.fork_rng():
        torch.manual_seed(trunk)
        network = Redirector(RedirectorConfig(concepts=concepts[:start], **SIZES))
    state = dict(network.state_dict())
    for number, name in enumerate(concepts[start:], start):
        state = with_concept(state, number, seed=sum(map(ord, name)))
    network = Redirector(replace(network.config, concepts=concepts))
    network.load_state_dict(state)
    values = tuple(float(len(name)) for name in concepts)
    settings = {"prompt_thresholds": values, "image_thresholds": values, **more}
    config = SafeRedirManyConfig(concept=", ".join(concepts), network=network.config.to_dict(), **settings)
    return SafeRedirMany(config, network)


def scores(guard: SafeRedirMany) -> dict[str, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    e0, x0 = torch.randn(3, 5, 8, generator=generator), torch.randn(3, 4, 8, 8, generator=generator)
    with torch.no_grad():
        prompt, image = guard.network.prompt_logits(e0), guard.network.image_logits(x0, 500.0)
        shifts = [
            guard.network.redirection(e0, chosen=torch.full((3, 1), k)) for k in range(len(guard.config.concepts))
        ]
    return {
        name: [prompt[:, k], image[:, k], shifts[k].delta, shifts[k].mask]
        for k, name in enumerate(guard.config.concepts)
    }


@pytest.mark.parametrize("start", [2, BLOCK - 1])  # with the second, the merged rows need another block
def test_no_score_changes_by_a_bit(start: int) -> None:
    known = [f"c{number}" for number in range(start)]
    first, second = grown(*known, "fox", start=start), grown(*known, "owl", "bear", start=start, off=("owl", "c0"))
    both = merged([first, second])
    assert both.config.concepts == (*known, "fox", "owl", "bear") and both.config.off == ("owl",)
    assert both.config.prompt_thresholds[-3:] == (3.0, 3.0, 4.0)
    after = scores(both)
    for guard in (first, second):
        for name, parts in scores(guard).items():
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(parts, after[name], strict=True))


def test_what_shares_no_trunk_or_no_settings_is_refused() -> None:
    first = grown("star", "ring", "fox")
    for other, sentence in (
        (grown("star", "ring", "owl", trunk=1), "different trunks"),
        (grown("star", "ring", "owl", most=2), r"different settings \(most\)"),
        (grown("star", "ring", "fox", image_thresholds=(0.0,) * 3), "different concepts of the name 'star'"),
        (sr.Guard.from_pretrained("pictoworld/star"), "with a trunk of its own"),
    ):
        with pytest.raises(GuardConfigError, match=sentence):
            merged([first, other])
    with pytest.raises(GuardConfigError, match="at least two"):
        merged([first])


def test_the_command_line_writes_the_merged_guard(tmp_path: Path) -> None:
    folders = [grown("star", "ring", name).save_pretrained(tmp_path / name) for name in ("fox", "owl")]

    def call(*words: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["guards", "merge", *map(str, words)])
        return result.exit_code, " ".join(result.output.split())

    code, output = call(*folders, "--out", tmp_path / "both")
    assert code == 0 and "4 concepts: star, ring, fox, owl" in output
    assert sr.Guard.from_pretrained(tmp_path / "both").config.concepts == ("star", "ring", "fox", "owl")
    assert call(*folders, "--out", tmp_path / "both")[0] != 0
    code, output = call(folders[0], "pictoworld/star", "--out", tmp_path / "other")
    assert code != 0 and not (tmp_path / "other").exists()
