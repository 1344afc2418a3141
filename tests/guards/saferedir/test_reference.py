"""The reference redirector against golden vectors, independent re-computations and damaged checkpoints."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saferedir.guards.saferedir import ReferenceRedirector, load_reference_redirector
from saferedir.guards.saferedir.reference import (
    RedirectorOutput,
    ReferenceSizes,
    StateDictError,
    apply_reference_shift,
    reference_shift,
    sinusoid,
    widen_token_proj,
)

GOLDEN = Path(__file__).parents[2] / "golden"
SMALL = ReferenceSizes(
    prompt_dim=24, seq_len=9, latent_channels=5, latent_widths=(6, 8), latent_dim=14, sinusoid_dim=12,
    t_dim=10, cross_heads=3, classifier_hidden=7, token_hidden=11, rank=5, mask_hidden=13, alpha_hidden=15,
)  # fmt: skip


def closed_form(shapes: dict[str, list[int]], peaked: bool = False) -> dict[str, Tensor]:
    """The fill of the golden file: a state dict from names and shapes alone."""
    state = {}
    for k, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        numel = math.prod(shape)
        x = torch.sin(0.7390851 * torch.arange(numel, dtype=torch.float64) + 1.6180339 * (k + 1)).reshape(shape)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
            continue
        if name.endswith("running_var"):
            x = 1 + 0.25 * x
        elif len(shape) >= 2 and name != "pos_embed":
            x = x * math.sqrt(2 / (numel / shape[0]))
        elif name == "delta_head.scale":
            x = torch.ones_like(x)
        else:
            x = 1 + 0.1 * x if name.endswith("weight") else 0.1 * x
        state[name] = x.float()
    return peak(state) if peaked else state


def peak(state: dict[str, Tensor]) -> dict[str, Tensor]:
    sharp = {k: v * 30 for k, v in state.items() if k.endswith(("query.weight", "in_proj_weight"))}
    return {**state, **sharp, "classifier.3.bias": torch.tensor([0.9, -0.9])}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def shapes() -> dict[str, list[int]]:
    return json.loads((GOLDEN / "saferedir_state_dict.json").read_text())


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "saferedir_reference.safetensors")


@pytest.fixture(scope="module")
def redirector(shapes: dict[str, list[int]]) -> ReferenceRedirector:
    return load_reference_redirector(closed_form(shapes))


@pytest.fixture(scope="module")
def peaked(shapes: dict[str, list[int]]) -> ReferenceRedirector:
    return load_reference_redirector(closed_form(shapes, peaked=True))


@pytest.fixture
def small_state() -> dict[str, Tensor]:
    return closed_form({k: list(v.shape) for k, v in ReferenceRedirector(SMALL).state_dict().items()})


@pytest.fixture(autouse=True)
def no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def run(model: ReferenceRedirector, golden: dict[str, Tensor], case: str) -> RedirectorOutput:
    return model(*(golden[f"{case}.{name}"] for name in ("latent", "prompt_embeds", "timestep")))


def small_inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    latent = torch.randn(batch, SMALL.latent_channels, 7, 5, generator=g)
    embeds = torch.randn(2 * batch, SMALL.seq_len, SMALL.prompt_dim, generator=g)
    return latent, embeds, torch.linspace(981, 1, batch)


def test_p1_parameter_count_names_order_and_shapes(redirector: ReferenceRedirector, shapes: dict[str, list[int]]):
    assert sum(p.numel() for p in redirector.parameters()) == 14_573_574
    found = {name: list(value.shape) for name, value in redirector.state_dict().items()}
    assert found == shapes
    assert list(found) == list(shapes)
    assert redirector.sizes == ReferenceSizes()
    assert not redirector.training


def test_closed_form_fill(shapes: dict[str, list[int]]):
    state = closed_form(shapes)
    expected = {
        "alpha_predictor.net.0.bias": [0.0998885, 0.0706453, 0.0045373],
        "latent_encoder.0.conv.0.weight": [0.1752495, 0.2356971, 0.1731510],
        "token_proj.2.weight": [0.0406994, -0.0018706],
    }
    for name, values in expected.items():
        torch.testing.assert_close(state[name].flatten()[: len(values)], torch.tensor(values), atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", ["b1", "b2", "peaked"])
def test_p2_golden(case, redirector, peaked, golden):
    out = run(peaked if case == "peaked" else redirector, golden, case)
    for name, value in out._asdict().items():
        assert value.shape == golden[f"{case}.{name}"].shape
        assert relative(value, golden[f"{case}.{name}"]) < 1e-5, name


@pytest.mark.parametrize("mask_again", [False, True])
def test_p2_golden_redirected(mask_again, redirector, golden):
    out = run(redirector, golden, "b1")
    e0 = golden["b1.prompt_embeds"]
    shift = reference_shift(out.delta, out.alpha, e0, out.mask if mask_again else None)
    expected = golden["redirected.mask_again" if mask_again else "redirected.alpha_scale_1.25"]
    assert relative(apply_reference_shift(e0, shift, 1.25), expected) < 1e-5


def test_p2_rows_are_independent(redirector, golden):
    both = run(redirector, golden, "b2")
    latent, embeds, t = (golden[f"b2.{name}"] for name in ("latent", "prompt_embeds", "timestep"))
    for row in range(2):
        single = redirector(latent[row : row + 1], embeds[[row, row + 2]], t[row])
        for a, b in zip(both, single, strict=True):
            assert relative(a[row : row + 1], b) < 1e-5


def test_p3_time_embedding():
    table = sinusoid(torch.tensor([981.0, 0.0]), 320)
    expected = torch.tensor([0.7333, 0.6021, 0.1037, 0.6800, 0.9946])
    torch.testing.assert_close(table[0, [0, 1, 159, 160, 319]], expected, atol=1e-4, rtol=0)
    assert torch.equal(table[1], torch.cat([torch.zeros(160), torch.ones(160)]))


def test_p4_cross_attention_head(peaked):
    head = peaked.cross_attn.heads[1]
    g = torch.Generator().manual_seed(0)
    j, e = torch.randn(2, 576, generator=g), torch.randn(2, 77, 768, generator=g)
    q = j @ head.query.weight.T + head.query.bias
    k = torch.einsum("btd,od->bto", e, head.key.weight) + head.key.bias
    v = torch.einsum("btd,od->bto", e, head.value.weight) + head.value.bias
    w = (torch.einsum("bo,bto->bt", q, k) / 768**0.5).softmax(-1)
    assert w.max() > 0.3, "the softmax must be peaked for this test to see the temperature"
    x = torch.einsum("bt,bto->bo", w, v) + v.mean(1)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert relative(head(j, e), x * head.norm.weight + head.norm.bias) < 1e-5


def test_p5_mask_attention(peaked):
    block = peaked.mask_predictor
    e = torch.randn(2, 77, 768, generator=torch.Generator().manual_seed(1))
    qkv = e @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
    q, k, v = (x.reshape(2, 77, 4, 192).transpose(1, 2) for x in qkv.split(768, dim=-1))
    w = (q @ k.transpose(-1, -2) / 192**0.5).softmax(-1)
    mixed = (w @ v).transpose(1, 2).reshape(2, 77, 768) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
    assert relative(block(e), block.predictor(mixed)[..., 0].sigmoid()) < 1e-5


def test_p6_embedding_layouts(redirector, golden):
    latent, embeds, t = (golden[f"b2.{name}"] for name in ("latent", "prompt_embeds", "timestep"))
    out = redirector(latent, embeds, t)
    stored = torch.stack([embeds[:2], embeds[2:]], dim=1)
    for other in (redirector(latent, stored, t), redirector(latent, embeds[2:], t)):
        assert all(torch.equal(a, b) for a, b in zip(out, other, strict=True))
    swapped = redirector(latent, torch.cat([embeds[2:], embeds[:2]]), t)
    assert relative(swapped.delta, out.delta) > 1e-3


def test_p7_widened_token_proj_is_a_warm_start(redirector, golden):
    reference = run(redirector, golden, "b1").delta
    unit = torch.nn.functional.normalize(reference, dim=-1)
    assert (unit @ unit.transpose(1, 2)).min() > 1 - 1e-5, "the reference has one direction for all tokens"
    widened = widen_token_proj(redirector)
    assert widened.token_proj[0].in_features == 576 + 3 * 768
    torch.testing.assert_close(
        torch.nn.functional.normalize(run(widened, golden, "b1").delta, dim=-1), unit, atol=1e-6, rtol=0
    )
    assert load_reference_redirector(widened.state_dict()).sizes.token_specific


def test_p8_shift_length_and_cancelling_scalars(redirector, golden):
    out, e0, s = run(redirector, golden, "b2"), golden["b2.prompt_embeds"], 1.25
    moved = apply_reference_shift(e0, reference_shift(out.delta, out.alpha, e0), s)
    expected = s * out.alpha.repeat(2, 1, 1)[..., 0] * e0.norm(dim=-1)
    torch.testing.assert_close((moved - e0).norm(dim=-1), expected, rtol=1e-5, atol=1e-5)
    for c in (0.01, 37.0):
        again = apply_reference_shift(e0, reference_shift(out.delta * c, out.alpha, e0), s)
        assert relative(again, moved) < 1e-6


def test_timestep_forms_and_ground_truth_mask(small_state):
    model = load_reference_redirector(small_state)
    latent, embeds, _ = small_inputs()
    out = model(latent, embeds, torch.tensor([40, 40]))
    for t in (40, 40.0, torch.tensor(40), torch.tensor([40.0])):
        assert all(torch.equal(a, b) for a, b in zip(out, model(latent, embeds, t), strict=True))
    forced = model(latent, embeds, 40, ground_truth_mask=torch.ones(2, SMALL.seq_len, dtype=torch.bool))
    torch.testing.assert_close(forced.delta * out.mask[..., None], out.delta)
    assert torch.equal(forced.mask, out.mask)
    with pytest.raises(ValueError, match="timestep has 3 entries"):
        model(latent, embeds, torch.ones(3))
    with pytest.raises(ValueError, match=r"prompt_embeds has shape \(4, 8, 24\)"):
        model(latent, embeds[:, 1:], 40)


def test_p18_degenerate_directions_give_no_shift():
    delta, alpha, e0 = torch.randn(3, 4, 8), torch.rand(3, 4, 1), torch.randn(6, 4, 8)
    delta[0, 1] = 0
    delta[1, 2, 3] = float("nan")
    shift = reference_shift(delta, alpha, e0)
    assert shift.isfinite().all()
    assert not shift[[0, 3], 1].any()
    assert not shift[[1, 4]].any()
    assert shift[[2, 5]].any(-1).all()


def test_gradients_reach_prompt_and_latent(small_state):
    model = load_reference_redirector(small_state)
    latent, embeds, t = (x.requires_grad_() for x in small_inputs())
    for value in model(latent, embeds, t):
        (grad,) = torch.autograd.grad(value.square().sum(), embeds, retain_graph=True)
        assert grad[2:].abs().sum() > 0
        assert not grad[:2].any(), "the negative half is not read"
    out = model(latent, embeds, t)
    moved = apply_reference_shift(embeds, reference_shift(out.delta, out.alpha, embeds))
    assert torch.autograd.grad(moved.sum() + out.logits.sum(), latent)[0].abs().sum() > 0
    zero = torch.zeros(1, 2, 3, requires_grad=True)
    shift = reference_shift(zero, torch.ones(1, 2, 1), torch.ones(1, 2, 3))
    assert torch.autograd.grad(shift.sum(), zero)[0].isfinite().all()


def test_sizes_are_inferred_from_any_source(small_state, tmp_path):
    save_file(small_state, tmp_path / "a.safetensors")
    torch.save(small_state, tmp_path / "a.pt")
    torch.save(small_state, tmp_path / "a.pth")
    expected = load_reference_redirector(small_state)
    assert expected.sizes == SMALL
    for source in (str(tmp_path / "a.safetensors"), tmp_path / "a.pt", tmp_path / "a.pth"):
        loaded = load_reference_redirector(source)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), expected.parameters(), strict=True))
        assert not loaded.training
    loaded.pos_embed.mul_(2)
    assert torch.equal(small_state["pos_embed"], expected.pos_embed), "loading must copy"


def test_every_missing_or_misshapen_key_is_named(small_state):
    for key, value in small_state.items():
        without = {k: v for k, v in small_state.items() if k != key}
        misshapen = {**small_state, key: torch.cat([value[None], value[None]])}
        longer = {**small_state, key: torch.cat([value, value])} if value.ndim else misshapen
        for damaged in (without, misshapen, longer):
            with pytest.raises(StateDictError) as error:
                load_reference_redirector(damaged)
            assert key in str(error.value)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("extra.weight", torch.ones(2), "unexpected extra.weight"),
        ("module.pos_embed", torch.ones(2), "unexpected module.pos_embed"),
        ("pos_embed", [1.0], r"not tensors: pos_embed \(list\)"),
        ("gate_linear.bias", torch.tensor([float("nan")]), "non-finite weights in gate_linear.bias"),
        ("gate_linear.bias", torch.tensor([float("inf")]), "non-finite weights in gate_linear.bias"),
        ("gate_linear.bias", torch.tensor([1]), "kinds of number: gate_linear.bias torch.int64"),
        (7, torch.ones(2), "keys that are not strings: 7"),
    ],
)
def test_odd_entries_are_named(small_state, key, value, message):
    with pytest.raises(StateDictError, match=message):
        load_reference_redirector({**small_state, key: value})


def test_unreadable_files(tmp_path):
    (tmp_path / "noise.safetensors").write_bytes(b"not a checkpoint")
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "weights.bin").write_bytes(b"")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("noise.safetensors", "noise.pt", "weights.bin", "module.pt", "list.pt"):
        with pytest.raises(StateDictError, match=name):
            load_reference_redirector(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_reference_redirector(tmp_path / "absent.pt")
    with pytest.raises(StateDictError, match="lacks latent_encoder"):
        load_reference_redirector({})
