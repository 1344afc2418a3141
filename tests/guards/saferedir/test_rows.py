"""Many concepts as rows: the same numbers concept by concept, few chosen of many, one more that changes no bit of the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import silu

from saferedir.guards.saferedir import Redirector, RedirectorConfig
from saferedir.guards.saferedir.redirect import redirect, redirect_pooled
from saferedir.guards.saferedir.rows import BLOCK, LowRank, Rows, strongest, with_concept

SIZES = RedirectorConfig(
    prompt_dim=20, latent_widths=(6, 8), latent_strides=(1, 2), hidden=14, width=16, heads=2, rank=4, t_dim=6, pooled_dim=5,
    concepts=("star", "fox", "ring"), row_heads=True, has_joint=False,
)  # fmt: skip


def build(config: RedirectorConfig = SIZES) -> Redirector:
    torch.manual_seed(0)
    return Redirector(config).eval().requires_grad_(False)


def inputs(batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "prompt_embeds": torch.randn(batch, 7, 20, generator=generator) * 4,
        "prompt_mask": torch.tensor([[True] * 7, [True] * 4 + [False] * 3])[:batch],
        "pooled": torch.randn(batch, 5, generator=generator),
    }


def test_low_rank_maps_are_two_matrices_a_concept() -> None:
    torch.manual_seed(0)
    maps, x = LowRank(6, 3, 5, count=4), torch.randn(2, 7, 6)
    every = maps(x)
    for k in range(4):
        expected = silu(x @ maps.down[k].T + maps.down_bias[k]) @ maps.up[k].T + maps.up_bias[k]
        torch.testing.assert_close(every[:, k], expected)
    chosen = torch.tensor([[2, 0], [3, 3]])
    torch.testing.assert_close(maps(x, chosen), torch.stack([every[0, [2, 0]], every[1, [3, 3]]]))


def test_chosen_concepts_are_those_of_all() -> None:
    model, data = build(), inputs()
    every = model.redirection(**data)
    chosen = torch.tensor([[2, 0], [1, 2]])
    some = model.redirection(**data, chosen=chosen)
    for name, value in vars(some).items():
        expected = torch.stack([vars(every)[name][row, chosen[row]] for row in range(2)])
        torch.testing.assert_close(value, expected, msg=name)
    assert some.delta.shape == (2, 2, 7, 20) and some.mask[1, :, 4:].eq(0).all()


def test_the_strongest_of_those_that_act_are_chosen() -> None:
    weight = torch.tensor([[0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    score = torch.tensor([[9.0, 1.0, 3.0, 2.0], [1.0, 2.0, -5.0, 4.0]])
    chosen, acts = strongest(weight, score, 2)
    assert chosen[0].tolist() == [2, 3] and acts.tolist() == [[1, 1], [1, 0]] and int(chosen[1, 0]) == 2
    assert strongest(weight, score, 9)[0].shape == (2, 4)


def test_nothing_that_acts_moves_nothing_and_what_is_not_chosen_has_no_part() -> None:
    model, data = build(), inputs()
    weight = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    chosen, acts = strongest(weight, weight, 2)
    e, p = data["prompt_embeds"], data["pooled"]
    some = model.redirection(**data, chosen=chosen)
    moved, pooled = redirect(e, some, acts), redirect_pooled(p, some, acts)
    assert torch.equal(moved[0], e[0]) and torch.equal(pooled[0], p[0])
    every = model.redirection(**data)
    torch.testing.assert_close(moved, redirect(e, every, weight))
    torch.testing.assert_close(pooled, redirect_pooled(p, every, weight))


@pytest.mark.parametrize("count", [3, BLOCK])
def test_one_more_concept_changes_no_bit_of_the_others_within_a_block(count: int) -> None:
    config = replace(SIZES, concepts=tuple(f"c{i}" for i in range(count)))
    model, data = build(config), inputs()
    grown = Redirector(replace(config, concepts=(*config.concepts, "new"))).eval().requires_grad_(False)
    grown.load_state_dict(with_concept(dict(model.state_dict()), count))
    x0, t = torch.randn(2, 4, 8, 8), torch.tensor([900.0, 10.0])
    for before, after in (
        (model.prompt_logits(**data), grown.prompt_logits(**data)),
        (model.image_logits(x0, t), grown.image_logits(x0, t)),
    ):
        assert after.shape == (2, count + 1)
        if count < BLOCK:
            assert torch.equal(after[:, :count], before)
        torch.testing.assert_close(after[:, :count], before)
    chosen = torch.tensor([[0, 1], [2, 1]])
    parts = zip(model.redirection(**data, chosen=chosen).__dict__.values(),
                grown.redirection(**data, chosen=chosen).__dict__.values(), strict=True)  # fmt: skip
    assert all(torch.equal(before, after) for before, after in parts)


def test_without_a_joint_verdict_there_is_no_cross_attention_and_asking_is_an_error() -> None:
    model, data = build(), inputs()
    assert not any("cross_attention" in name or "joint" in name for name in model.state_dict())
    output = model(torch.randn(2, 4, 8, 8), 500.0, **data)
    assert output.joint_logits is None and output.prompt_logits.shape == (2, 3)
    with pytest.raises(ValueError, match="has_joint=False"):
        model.joint_logits(torch.randn(2, 4, 8, 8), 500.0, **data)
    with pytest.raises(ValueError, match="row_heads"):
        build(replace(SIZES, row_heads=False)).redirection(**data, chosen=torch.zeros(2, 1, dtype=torch.long))


def test_rows_start_as_a_linear_layer_does() -> None:
    rows = Rows(9, 70)
    assert rows.weight.shape == (2 * BLOCK, 9) and rows(torch.zeros(4, 9)).shape == (4, 70)
