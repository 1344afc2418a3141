"""The generalised redirector: what moves, what stays bit-identical, and that gradients flow everywhere."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saferedir.guards.saferedir import Redirector, RedirectorConfig
from saferedir.guards.saferedir.network import (
    Redirection,
    RedirectorPrediction,
    redirect,
    redirect_pooled,
)
from saferedir.guards.saferedir.redirect import _together

TINY = RedirectorConfig(
    prompt_dim=20, latent_widths=(6, 8), latent_strides=(1, 2), hidden=14, width=16, heads=2, rank=10, t_dim=6
)
TWO = replace(TINY, concepts=("star", "fox"), pooled_dim=5)


def build(config: RedirectorConfig, seed: int = 0) -> Redirector:
    torch.manual_seed(seed)
    return Redirector(config).eval()


def randn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(config: RedirectorConfig, batch: int = 3, length: int = 7, size: tuple[int, int] = (9, 7)) -> dict:
    pooled = randn(batch, config.pooled_dim, seed=4) if config.pooled_dim else None
    return {
        "latent": randn(batch, config.latent_channels, *size, seed=2),
        "timestep": torch.linspace(950, 3, batch),
        "prompt_embeds": randn(batch, length, config.prompt_dim, seed=3) * 4,
        "prompt_mask": None,
        "pooled": pooled,
    }


def tensors(out: RedirectorPrediction) -> dict[str, Tensor]:
    parts = {**vars(out), **vars(out.redirection)}
    return {name: value for name, value in parts.items() if isinstance(value, Tensor)}


def rows(data: dict, index: list[int]) -> dict:
    return {name: value if value is None else value[index] for name, value in data.items()}


def directions(k: int = 2, batch: int = 3, length: int = 6, dim: int = 8, dtype=torch.float32) -> Redirection:
    return Redirection(
        delta=randn(batch, k, length, dim, seed=5, dtype=dtype),
        mask=randn(batch, k, length, seed=6, dtype=dtype).sigmoid(),
        alpha=randn(batch, k, length, 1, seed=7, dtype=dtype).sigmoid() * 1.5,
        pooled_delta=randn(batch, k, 4, seed=8, dtype=dtype),
        pooled_alpha=randn(batch, k, 1, seed=9, dtype=dtype).sigmoid(),
    )


def test_default_size_and_gradients_reach_every_parameter():
    config = RedirectorConfig(prompt_dim=96)
    model = build(config)
    assert sum(p.numel() for p in model.parameters()) <= 900_000
    out = model(**inputs(config))
    sum(value.square().sum() for value in tensors(out).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_pieces_equal_the_whole():
    model, data = build(TWO), inputs(TWO)
    out = model(**data)
    text = {name: data[name] for name in ("prompt_embeds", "prompt_mask", "pooled")}
    image = {name: data[name] for name in ("latent", "timestep")}
    assert torch.equal(model.prompt_logits(**text), out.prompt_logits)
    assert torch.equal(model.image_logits(**image), out.image_logits)
    assert torch.equal(model.joint_logits(**image, **text), out.joint_logits)
    both = model.image_and_joint_logits(**image, **text)
    assert torch.equal(both[0], out.image_logits) and torch.equal(both[1], out.joint_logits)
    alone = model.redirection(**text)
    assert all(torch.equal(value, getattr(out.redirection, name)) for name, value in vars(alone).items())


@torch.no_grad()
def test_each_verdict_reads_only_its_own_inputs():
    model, data = build(TINY), inputs(TINY)
    base = tensors(model(**data))
    other_prompt = tensors(model(**{**data, "prompt_embeds": -data["prompt_embeds"]}))
    other_image = tensors(model(**{**data, "latent": -data["latent"], "timestep": 500.0}))
    assert torch.equal(base["image_logits"], other_prompt["image_logits"])
    for name in base.keys() - {"image_logits", "joint_logits"}:
        assert torch.equal(base[name], other_image[name]), name
    for name in ("prompt_logits", "joint_logits", "delta", "mask", "alpha"):
        assert not torch.allclose(base[name], other_prompt[name]), name
    for name in ("image_logits", "joint_logits"):
        assert not torch.allclose(base[name], other_image[name]), name


@torch.no_grad()
@pytest.mark.parametrize("pooled_dim", [0, 16])
@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize("length", [1, 77, 333])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_p13_any_shape(dtype, length, channels, pooled_dim):
    config = replace(TWO, latent_channels=channels, pooled_dim=pooled_dim)
    model, data = build(config).to(dtype), inputs(config, batch=2, length=length, size=(9, 5))
    out = model(**data)
    assert out.prompt_logits.shape == out.image_logits.shape == out.joint_logits.shape == (2, 2)
    assert out.redirection.delta.shape == (2, 2, length, 20)
    assert out.redirection.mask.shape == (2, 2, length)
    assert out.redirection.alpha.shape == (2, 2, length, 1)
    assert all(value.dtype == dtype and value.isfinite().all() for value in tensors(out).values())
    active = torch.ones(2, 2)
    moved = redirect(data["prompt_embeds"].half(), out.redirection, active, exempt_bos=False)
    assert moved.dtype == torch.float16
    assert moved.isfinite().all()
    if pooled_dim:
        assert out.redirection.pooled_delta.shape == (2, 2, pooled_dim)
        assert redirect_pooled(data["pooled"], out.redirection, active).shape == (2, pooled_dim)


@torch.no_grad()
@pytest.mark.parametrize("config", [TWO, replace(TWO, token_specific=False), replace(TWO, latent_aware_delta=True)])
def test_p13_padding_changes_nothing(config):
    model, data = build(config), inputs(config, length=5)
    data["prompt_mask"] = torch.ones(3, 5, dtype=torch.bool)
    base = model(**data)
    padded = {
        **data,
        "prompt_embeds": torch.cat([data["prompt_embeds"], 50 * randn(3, 4, 20)], dim=1),
        "prompt_mask": torch.cat([data["prompt_mask"], torch.zeros(3, 4, dtype=torch.bool)], dim=1),
    }
    out = model(**padded)
    for name, value in tensors(base).items():
        cut = tensors(out)[name]
        cut = cut[:, :, :5] if name in ("delta", "mask", "alpha") else cut
        torch.testing.assert_close(cut, value, atol=1e-6, rtol=1e-6)
    assert not out.redirection.mask[:, :, 5:].any()
    unmasked = model(**{**data, "prompt_mask": None})
    for name, value in tensors(base).items():
        torch.testing.assert_close(tensors(unmasked)[name], value, atol=1e-6, rtol=1e-6)
    active = torch.ones(3, 2)
    args = (padded["prompt_embeds"], replace(out.redirection, mask=torch.ones(3, 2, 9)), active)
    moved = redirect(*args, prompt_mask=padded["prompt_mask"])
    assert torch.equal(moved[:, 5:], padded["prompt_embeds"][:, 5:])
    nothing = model(**{**padded, "prompt_mask": torch.zeros(3, 9, dtype=torch.bool)})
    assert all(value.isfinite().all() for value in tensors(nothing).values())


@torch.no_grad()
@pytest.mark.parametrize("config", [TWO, replace(TWO, latent_aware_delta=True)])
def test_p12_rows_do_not_see_each_other(config):
    model, data = build(config), inputs(config)
    data["prompt_mask"] = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6]).bool()
    out, order = tensors(model(**data)), [2, 0, 1]
    shuffled = tensors(model(**rows(data, order)))
    for name, value in out.items():
        torch.testing.assert_close(shuffled[name], value[order], atol=1e-6, rtol=1e-6)
    active = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    moved = redirect(data["prompt_embeds"], model(**data).redirection, active)
    for row in range(3):
        solo = rows(data, [row])
        alone = model(**solo)
        for name, value in tensors(alone).items():
            torch.testing.assert_close(value, out[name][[row]], atol=1e-6, rtol=1e-6)
        solo_moved = redirect(solo["prompt_embeds"], alone.redirection, active[[row]])
        torch.testing.assert_close(solo_moved, moved[[row]], atol=2e-6, rtol=1e-6)
    assert torch.equal(moved[0], data["prompt_embeds"][0])


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_p11_what_stays_is_bit_identical(dtype):
    parts, e0 = directions(), randn(3, 6, 8).to(dtype)
    e0[0, 2, 3], e0[1, 2, 3] = -0.0, 0.0
    for active in (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool)):
        assert torch.equal(bits(redirect(e0, parts, active)), bits(e0))
    on = torch.ones(3, 2)
    assert torch.equal(bits(redirect(e0, replace(parts, mask=torch.zeros(3, 2, 6)), on)), bits(e0))
    mask = parts.mask.clone()
    mask[:, :, 2] = 0
    moved = redirect(e0, replace(parts, mask=mask), on)
    assert torch.equal(bits(moved[:, 2]), bits(e0[:, 2]))
    assert (moved[:, [1, 3, 4, 5]] != e0[:, [1, 3, 4, 5]]).any(-1).all()
    assert torch.equal(bits(moved[:, 0]), bits(e0[:, 0])), "BOS is exempt"
    assert (redirect(e0, parts, on, exempt_bos=False)[:, 0] != e0[:, 0]).any(-1).all()
    pooled = randn(3, 4).to(dtype)
    assert torch.equal(bits(redirect_pooled(pooled, parts, torch.zeros(3, 2))), bits(pooled))
    assert (redirect_pooled(pooled, parts, on) != pooled).any(-1).all()


def test_left_padding_exempts_the_first_real_token():
    parts, e0 = directions(), randn(3, 6, 8)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]] * 3).bool()
    moved = redirect(e0, parts, torch.ones(3, 2), prompt_mask=mask)
    assert ((moved != e0).any(-1) == torch.tensor([0, 0, 0, 1, 1, 1]).bool()).all()


def test_shift_formula_and_per_sample_scale():
    parts, e0, scale = directions(k=1), randn(3, 6, 8), torch.tensor([0.1, 0.5, 1.0])
    moved = redirect(e0, parts, torch.ones(3, 1), scale=scale, exempt_bos=False)
    unit = parts.delta[:, 0] / parts.delta[:, 0].norm(dim=-1, keepdim=True)
    strength = scale[:, None] * parts.mask[:, 0] * parts.alpha[:, 0, :, 0] * e0.norm(dim=-1)
    torch.testing.assert_close(moved, e0 + strength[..., None] * unit)
    big = redirect(e0, replace(parts, delta=parts.delta * 1e4), torch.ones(3, 1), scale=scale, exempt_bos=False)
    torch.testing.assert_close(big, moved)


def test_shifts_of_several_concepts_are_added_up_but_those_of_one_direction_count_once():
    along, across = torch.eye(8)[0], torch.eye(8)[1]
    e0 = randn(1, 6, 8)

    def shift(*directions: torch.Tensor, strengths: tuple[float, ...] = (0.3, 0.3)) -> torch.Tensor:
        """What is added to each token, in units of its length, (6, 8)."""
        k = len(directions)
        delta = torch.stack(directions).view(1, k, 1, 8).expand(1, k, 6, 8)
        alpha = torch.tensor(strengths[:k]).view(1, k, 1, 1).expand(1, k, 6, 1)
        parts = Redirection(delta, torch.ones(1, k, 6), alpha)
        moved = redirect(e0, parts, torch.ones(1, k), exempt_bos=False)
        return (moved - e0)[0] / e0[0].norm(dim=-1, keepdim=True)

    def towards(vector: torch.Tensor) -> torch.Tensor:
        return vector.expand(6, 8)

    torch.testing.assert_close(shift(along, across), towards(0.3 * along + 0.3 * across))
    torch.testing.assert_close(shift(along, along), towards(0.3 * along))
    torch.testing.assert_close(shift(along, 5 * along, strengths=(0.6, 0.2)), towards(0.6 * along))
    torch.testing.assert_close(shift(along, -along, strengths=(0.6, 0.2)), towards(0.4 * along))
    between = (along + across) / 2**0.5  # as far along either as it goes alone
    both = shift(along, between)
    torch.testing.assert_close(both @ along, both @ between)
    torch.testing.assert_close(both @ along, torch.full((6,), 0.3))


def test_a_concept_that_acts_alone_moves_as_the_only_one_bit_for_bit():
    parts, e0 = directions(k=3), randn(3, 6, 8)
    active = torch.eye(3)
    moved = redirect(e0, parts, active)
    for row in range(3):
        only = Redirection(*(value[row : row + 1, row : row + 1] for value in vars(parts).values()))
        assert torch.equal(redirect(e0[row : row + 1], only, torch.ones(1, 1)), moved[row : row + 1])


@pytest.mark.parametrize("lengths", [(1, 0.5, 0.5), (1, 0.25, 0.25, 0.25), (1, *[0.2] * 19), (1, 0.5), (1, 1, 1)])
def test_short_shifts_beside_a_long_one_do_not_shorten_it(lengths):
    shifts = torch.tensor(lengths).view(1, -1, 1, 1) * torch.tensor([0.6, 0.8])
    assert _together(shifts).norm() == pytest.approx(1)


def test_shifts_are_joined_in_full_precision_under_autocast():
    shifts = torch.zeros(1, 2, 2, 8)
    shifts[0, 0, 0, 0] = 0.5
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(_together(shifts), shifts[:, 0])


def test_joined_shifts_have_finite_gradients_at_zero_and_where_they_cancel():
    shifts = torch.zeros(1, 3, 2, 4)
    shifts[0, :, 1, 0] = torch.tensor([1.0, 1.0, -1.0])
    _together(shifts.requires_grad_()).sum().backward()
    assert shifts.grad.isfinite().all()


def test_p14_order_and_bound():
    parts, e0 = directions(k=3), randn(3, 6, 8)
    active, order = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]]), [2, 0, 1]
    moved = redirect(e0, parts, active, scale=4.0)
    swapped = Redirection(*(value[:, order] for value in vars(parts).values()))
    torch.testing.assert_close(redirect(e0, swapped, active[:, order], scale=4.0), moved, atol=1e-6, rtol=1e-6)
    for rho in (0.2, 1.5):
        moved = redirect(e0, parts, active, scale=4.0, max_shift=rho)
        ratio = (moved - e0).norm(dim=-1) / e0.norm(dim=-1)
        assert ratio.max() <= rho * (1 + 1e-5)
        assert ratio.max() >= rho * (1 - 1e-5), "this strong a shift must touch its bound"


@torch.no_grad()
@pytest.mark.parametrize("k", [0, 1])
def test_p14_a_concept_alone_equals_its_head_among_others(k):
    model, data = build(TWO), inputs(TWO)
    single = Redirector(replace(TWO, concepts=(TWO.concepts[k],))).eval()
    other = f"heads.{1 - k}."
    state = {n.replace(f"heads.{k}.", "heads.0."): v for n, v in model.state_dict().items() if other not in n}
    single.load_state_dict(state)
    both, alone = tensors(model(**data)), tensors(single(**data))
    for name, value in alone.items():
        torch.testing.assert_close(value, both[name][:, [k]], atol=1e-6, rtol=1e-6)
    active = torch.zeros(3, 2)
    active[:, k] = 1
    torch.testing.assert_close(
        redirect(data["prompt_embeds"], single(**data).redirection, torch.ones(3, 1)),
        redirect(data["prompt_embeds"], model(**data).redirection, active),
        atol=1e-6, rtol=1e-6,
    )  # fmt: skip


def test_p15_gradcheck_of_the_soft_gate():
    parts, e0 = (
        directions(k=2, batch=2, length=3, dim=4, dtype=torch.float64),
        randn(2, 3, 4, dtype=torch.float64),
    )
    scores = randn(2, 2, seed=11, dtype=torch.float64)

    def guarded(e: Tensor, delta: Tensor, mask: Tensor, alpha: Tensor, score: Tensor) -> Tensor:
        return redirect(e, Redirection(delta, mask, alpha), torch.sigmoid(3 * score), scale=2.0, max_shift=0.9)

    args = tuple(x.requires_grad_() for x in (e0, parts.delta, parts.mask, parts.alpha, scores))
    assert torch.autograd.gradcheck(guarded, args)


def test_p15_gradcheck_from_embedding_and_latent():
    model = build(TINY).double()
    e, latent = randn(1, 3, 20, dtype=torch.float64), randn(1, 4, 4, 3, dtype=torch.float64)

    def guarded(e: Tensor, latent: Tensor) -> Tensor:
        out = model(latent, 500.0, e)
        gate = torch.sigmoid(out.prompt_logits + out.image_logits + out.joint_logits)
        return redirect(e, out.redirection, gate)

    assert torch.autograd.gradcheck(guarded, (e.requires_grad_(), latent.requires_grad_()), fast_mode=True)
    for name in ("prompt_logits", "joint_logits", "delta", "mask", "alpha"):
        value = tensors(model(latent, 500.0, e))[name]
        assert torch.autograd.grad(value.square().sum(), e)[0].abs().sum() > 0, name
    for name in ("image_logits", "joint_logits"):
        value = tensors(model(latent, 500.0, e))[name]
        assert torch.autograd.grad(value.square().sum(), latent)[0].abs().sum() > 0, name


def test_closed_straight_through_gate_passes_gradient_but_no_shift():
    parts, e0, score = directions(k=1), randn(3, 6, 8), torch.full((3, 1), -2.0, requires_grad=True)
    soft = torch.sigmoid(score)
    moved = redirect(e0, parts, (score > 0).float() + soft - soft.detach())
    assert torch.equal(moved, e0)
    assert torch.autograd.grad((moved * randn(3, 6, 8, seed=12)).sum(), score)[0].abs().min() > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["delta", "mask", "alpha"])
def test_p18_non_finite_redirections_move_nothing(name, bad):
    parts, e0 = directions(), randn(3, 6, 8)
    value = getattr(parts, name).clone()
    value[1].flatten()[3] = bad
    broken = replace(parts, **{name: value})
    assert broken.finite.tolist() == [True, False, True]
    moved = redirect(e0, broken, torch.ones(3, 2))
    assert torch.equal(moved[1], e0[1])
    assert torch.equal(moved[[0, 2]], redirect(e0, parts, torch.ones(3, 2))[[0, 2]])
    assert torch.equal(redirect_pooled(randn(3, 4), broken, torch.ones(3, 2))[1], randn(3, 4)[1])


def test_p18_zero_directions_and_zero_tokens_stay_finite():
    delta, e0 = torch.zeros(1, 1, 3, 4, requires_grad=True), torch.zeros(1, 3, 4, requires_grad=True)
    moved = redirect(e0, Redirection(delta, torch.ones(1, 1, 3), torch.ones(1, 1, 3, 1)), torch.ones(1, 1))
    assert not moved.any()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(moved.sum(), (delta, e0)))


@torch.no_grad()
def test_shared_direction_and_ablation_switches():
    data = inputs(TINY)
    shared = build(replace(TINY, token_specific=False)).redirection(data["prompt_embeds"]).delta
    assert torch.equal(shared, shared[:, :, :1].expand_as(shared))
    own = build(TINY).redirection(data["prompt_embeds"]).delta
    assert not torch.allclose(own, own[:, :, :1])
    aware = build(replace(TINY, latent_aware_delta=True))
    with pytest.raises(ValueError, match="needs latent and timestep"):
        aware.redirection(data["prompt_embeds"])
    args = {"prompt_embeds": data["prompt_embeds"], "timestep": 10.0}
    assert not torch.allclose(
        aware.redirection(**args, latent=data["latent"]).delta,
        aware.redirection(**args, latent=-data["latent"]).delta,
    )


@torch.no_grad()
def test_wrong_shapes_are_explained():
    model, data = build(TWO), inputs(TWO)
    cases = {
        r"latent has shape \(3, 5, 9, 7\), expected \(B, 4, h, w\)": {"latent": torch.ones(3, 5, 9, 7)},
        r"prompt_embeds has shape \(3, 7, 19\), expected \(B, L, 20\)": {"prompt_embeds": torch.ones(3, 7, 19)},
        r"prompt_mask has shape \(3, 6\), expected \(3, 7\)": {"prompt_mask": torch.ones(3, 6)},
        r"pooled is None, expected \(3, 5\)": {"pooled": None},
        "timestep has 2 entries": {"timestep": torch.ones(2)},
    }
    for message, change in cases.items():
        with pytest.raises(ValueError, match=message):
            model(**{**data, **change})
    with pytest.raises(ValueError, match=r"active has shape \(3, 1\), expected \(3, 2\)"):
        redirect(randn(3, 6, 8), directions(), torch.ones(3, 1))
    with pytest.raises(ValueError, match="no pooled part"):
        redirect_pooled(randn(3, 4), build(TINY).redirection(data["prompt_embeds"]), torch.ones(3, 1))


def test_config_round_trip():
    assert RedirectorConfig.from_dict(TWO.to_dict()) == TWO
    assert TWO.to_dict()["concepts"] == ["star", "fox"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_dim": 0}, "prompt_dim is 0"),
        ({"prompt_dim": "96"}, "prompt_dim is '96'"),
        ({"pooled_dim": -1}, "pooled_dim is -1"),
        ({"concepts": []}, "concepts is"),
        ({"concepts": "star"}, "concepts is 'star'"),
        ({"concepts": ["a", "a"]}, "each name once"),
        ({"latent_strides": [2]}, "latent_strides has 1 entries"),
        ({"latent_widths": [8, 0]}, "each of latent_widths is 0"),
        ({"width": 20, "heads": 3}, "width is 20"),
        ({"max_shift": 0}, "max_shift is 0"),
        ({"alpha_max": float("nan")}, "alpha_max is nan"),
        ({"exempt_bos": 1}, "exempt_bos is 1"),
        ({"colour": 1}, "does not know colour"),
    ],
)
def test_config_errors(change, message):
    with pytest.raises(ValueError, match=message):
        RedirectorConfig.from_dict({**TINY.to_dict(), **change})
    with pytest.raises(ValueError, match="lacks prompt_dim"):
        RedirectorConfig.from_dict({})
