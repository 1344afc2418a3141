"""SafeRedir on every family: training from pairs, masks and padding, pooled embeddings, retries, videos, half precision.

Tiny random pipelines (tests/tiny_pipelines.py) whose prompts are letters; networks are random unless a test trains one.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract.guards import shared_pipeline
from tests.tiny_pipelines import PIPELINES as CASES
from tests.tiny_pipelines import run
from tests.tiny_variants import ALL_CASES
from torch import Tensor

from saferedir import BackboneMismatchError, Guard, GuardError, attach
from saferedir.guard import Step
from saferedir.guards.saferedir import Redirector, RedirectorConfig, SafeRedir, SafeRedirConfig, verdicts
from saferedir.guards.saferedir.anchors import without_padding
from saferedir.guards.saferedir.network import redirect
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families import family_of
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.training.saferedir import calibration as calibration_module
from saferedir.training.saferedir import fit as fit_module
from saferedir.training.saferedir.batches import ImageData, TextBatch, TextData, encode_text, image_batch
from saferedir.training.saferedir.calibration import evaluate, held_out_scores
from saferedir.training.saferedir.dataset import Pair, encode_on_cpu, moved_tokens, roll_out
from saferedir.training.saferedir.losses import LossWeights, classification_term, redirection_terms, total
from saferedir.training.saferedir.train import train_saferedir
from saferedir.training.saferedir.train_config import TrainConfig

SANA = CASES["sana"]  # its instructions to the encoder are 1,500 letters long
PIPELINES = {**CASES, "sana": replace(SANA, settings={**SANA.settings, "complex_human_instruction": None})}
WORDS = [f"{a}{b}" for a in "abcdef" for b in "klmnp"]
PAIRS = [Pair(f"{w} x", f"{w} o") for w in WORDS] + [Pair(None, f"{w} b") for w in WORDS[::2]]
NETWORK = {"width": 32, "heads": 2, "hidden": 32, "rank": 32, "latent_widths": [8, 16], "latent_strides": [1, 2]}
FAMILIES = ("sd", "sdxl", "sd3", "flux", "flux-true-cfg", "pixart-sigma", "sana", "lumina2", "wan", "wan-2.2")
MASKED = ("pixart-sigma", "sana", "lumina2")
POOLED = ("sdxl", "sd3", "flux")
BOS = {"sd", "sdxl", "sd3", "sana", "lumina2"}


def call_of(name: str) -> dict[str, Any]:
    """What a run of this case takes beside prompt, steps and guidance scale."""
    case = PIPELINES[name]
    return {k: v for k, v in {**case.settings, **case.guidance}.items() if k != "guidance_scale"}


def quick(name: str, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "steps": 2, "batch": 4, "rollouts": 4, "held_out_rollouts": 6, "rollout_batch": 4, "rollout_steps": 2,
        "held_out": 0.4, "evaluate_every": 1, "network": NETWORK, "call": call_of(name), "learning_rate": 3e-3,
    }  # fmt: skip
    return TrainConfig(**{**settings, **changes})


@dataclass
class Trained:
    """A guard folder, the guard as training returned it, and what its run logged."""

    folder: Path
    guard: SafeRedir
    log: list[dict[str, Any]]


@functools.cache
def room() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="saferedir-backbones-")


@functools.cache
def pipeline(name: str) -> Any:
    """One pipeline a case; tests leave it as they found it."""
    return PIPELINES[name].build()


@functools.cache
def trained(name: str) -> Trained:
    """A guard trained for two steps; every family once."""
    log: list[dict[str, Any]] = []
    out = Path(room().name) / name
    guard = train_saferedir(pipeline(name), PAIRS, out, concept="x", config=quick(name), log=log.append)
    return Trained(out, guard, log)


def redirector(name: str, seed: int = 0, **changes: Any) -> Redirector:
    """A random network of a case's sizes."""
    pipe = pipeline(name)
    found = encode_on_cpu(pipe, ["a"], call_of(name))
    sizes = {
        "prompt_dim": found.prompt.shape[-1],
        "pooled_dim": 0 if found.pooled is None else found.pooled.shape[-1],
        "latent_channels": pipe.vae.config.get("latent_channels", pipe.vae.config.get("z_dim")),
        "exempt_bos": family_of(pipe).has_bos,
    }
    torch.manual_seed(seed)
    return Redirector(RedirectorConfig.from_dict({**sizes, **NETWORK, **changes})).eval()


class Watch(Guard[Any]):
    """Keeps what the denoiser is given after the guards before it."""

    method = "watch"

    def __init__(self) -> None:
        super().__init__(SafeRedirConfig(concept="watching"))
        self.steps: list[Step] = []

    def on_step_start(self, step: Step) -> Tensor:
        self.steps.append(replace(step, state=None))
        return step.prompt_embeds


def always(network: Redirector, **changes: Any) -> SafeRedir:
    """A guard that redirects every image from step 0, by its prompt."""
    settings = {"prompt_threshold": -1e6, "use_image": False, "network": network.config.to_dict(), **changes}
    anchors = {k: settings.pop(k) for k in ("anchor", "anchor_pooled") if k in settings}
    return SafeRedir(SafeRedirConfig(concept="x", **settings), network, **anchors)


def never(network: Redirector, **changes: Any) -> SafeRedir:
    return always(network, **{"prompt_threshold": 1e6, **changes})


def conditioning(name: str, *guards: SafeRedir, prompts: list[str], retry_level: tuple[int, ...] = ()) -> PromptEmbeds:
    """What the denoiser is given at step 0."""
    watch = Watch()
    pipe = pipeline(name)
    with attach(pipe, [*guards, watch]) as attached:
        attached.retry_level = retry_level
        run(PIPELINES[name], pipe, prompts, steps=1)
    step = watch.steps[0]
    return PromptEmbeds(
        step.prompt_embeds.clone(), None if step.pooled is None else step.pooled.clone(), step.prompt_mask
    )


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("name", FAMILIES)
def test_training_makes_a_guard_of_the_backbones_sizes(name: str) -> None:
    pipe, made = pipeline(name), trained(name)
    loaded = Guard.from_pretrained(made.folder)
    assert isinstance(loaded, SafeRedir)
    found = encode_on_cpu(pipe, ["ak o"], call_of(name))
    sizes = loaded.network.config
    assert sizes.prompt_dim == found.prompt.shape[-1]
    assert sizes.pooled_dim == (0 if found.pooled is None else found.pooled.shape[-1])
    assert sizes.latent_channels == pipe.vae.config.get("latent_channels", pipe.vae.config.get("z_dim"))
    assert sizes.exempt_bos == (name in BOS)
    assert loaded.config.backbone == backbone_fingerprint(pipe)
    assert [row["step"] for row in made.log] == [1, 2]
    measured = loaded.config.measured
    assert ("pooled_distance" in measured) == (name in (*POOLED, "flux-true-cfg"))
    anchor = encode_on_cpu(pipe, [loaded.config.training["anchor"]], call_of(name))
    assert loaded.anchor is not None and torch.equal(loaded.anchor, without_padding(anchor)[0])
    if anchor.pooled is None:
        assert loaded.anchor_pooled is None
    else:
        assert loaded.anchor_pooled is not None and torch.equal(loaded.anchor_pooled, anchor.pooled[0])
    with attach(pipe, loaded) as attached:
        run(PIPELINES[name], pipe, ["ak x", "bl"])
    assert len(attached.decisions) == 2
    decision = attached.decisions[0]
    assert len(decision.prompt_scores) == len(decision.image_scores) == 3


@pytest.mark.parametrize(("name", "setting"), [("sdxl", {"clip_skip": 1}), ("flux", {"max_sequence_length": 48})])
def test_a_trained_guard_refuses_prompts_encoded_in_another_way(name: str, setting: dict[str, Any]) -> None:
    guard = Guard.from_pretrained(trained(name).folder)
    with attach(pipeline(name), guard), pytest.raises(GuardError, match=f"{next(iter(setting))}=.*was trained with"):
        run(PIPELINES[name], pipeline(name), ["ak x"], steps=1, **setting)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_guard_refuses_another_backbone_in_one_sentence(name: str) -> None:
    guard = Guard.from_pretrained(trained(name).folder)
    other = "sdxl" if name == "sd" else "sd"
    with pytest.raises(BackboneMismatchError, match=r"was trained for another backbone \(.*family is") as caught:
        attach(pipeline(other), guard)
    assert "\n" not in str(caught.value)


def test_a_guard_forced_onto_another_backbone_says_what_does_not_fit() -> None:
    guard = never(redirector("sdxl"))
    with (
        attach(pipeline("sd"), guard),
        pytest.raises(GuardError, match=r"prompt width 32 where it knows 64.*pooled width 0"),
    ):
        run(PIPELINES["sd"], pipeline("sd"))
    guard = never(redirector("sd", latent_channels=16))
    with attach(pipeline("sd"), guard), pytest.raises(GuardError, match="latent channels 4 where it knows 16"):
        run(PIPELINES["sd"], pipeline("sd"))


@pytest.mark.parametrize("name", FAMILIES)
def test_training_sees_the_embeddings_that_the_guard_sees(name: str) -> None:
    prompts = ["ak x", "b"]
    seen = conditioning(name, prompts=prompts)
    found = encode_on_cpu(pipeline(name), prompts, call_of(name))
    torch.testing.assert_close(seen.prompt, found.prompt, atol=1e-5, rtol=1e-4)
    if found.pooled is not None:
        assert seen.pooled is not None
        torch.testing.assert_close(seen.pooled, found.pooled, atol=1e-5, rtol=1e-4)
    if name in MASKED:
        assert seen.mask is not None and found.mask is not None and torch.equal(seen.mask, found.mask)
    network = redirector(name)
    with attach(pipeline(name), never(network)) as attached:
        run(PIPELINES[name], pipeline(name), prompts, steps=1)
    scores = calibration_module.prompt_scores(network, found)
    assert [d.prompt_score for d in attached.decisions] == pytest.approx(scores.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", ["flux-true-cfg", "pixart-sigma"])
def test_a_killed_training_goes_on_to_the_same_guard(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = trained(name), Path(room().name) / f"{name}-killed"
    real = fit_module.evaluate  # type: ignore[attr-defined]

    def die(*args: Any) -> Any:
        raise KeyboardInterrupt

    calls = iter([real, die])
    monkeypatch.setattr(fit_module, "evaluate", lambda *a: next(calls)(*a))
    with pytest.raises(KeyboardInterrupt):
        train_saferedir(pipeline(name), PAIRS, out, concept="x", config=quick(name))
    work = out.with_name(out.name + ".work")
    assert (work / "checkpoint.pt").exists() and not out.exists()
    monkeypatch.setattr(fit_module, "evaluate", real)
    with pytest.raises(GuardError, match="another model"):
        train_saferedir(pipeline("sd"), PAIRS, out, concept="x", config=quick("sd"))
    resumed = train_saferedir(pipeline(name), PAIRS, out, concept="x", config=quick(name))
    assert not work.exists()
    for key, tensor in whole.guard.tensors().items():
        torch.testing.assert_close(resumed.tensors()[key], tensor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"call": {"generator": 1, "height": 32}}, "holds generator, which training sets itself"),
        ({"call": {"image": torch.zeros(1)}}, "more than plain numbers and texts"),
        ({"image_input": "x1"}, "expected x0, x0_uncond, x_t"),
    ],
)
def test_bad_training_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GuardError, match=message):
        TrainConfig(**changes)


def test_one_negative_prompt_serves_every_roll_out() -> None:
    settings: dict[str, Any] = {"steps": 1, "guidance_scale": 3.0, "seed": 0}
    with_b = roll_out(pipeline("sd"), ["a", "c"], **settings, call={**call_of("sd"), "negative_prompt": "b"})
    without = roll_out(pipeline("sd"), ["a", "c"], **settings, call=call_of("sd"))
    assert not torch.equal(with_b.frames, without.frames)


@pytest.mark.parametrize("name", ["flux-2-klein", "flux-2", "flux-kontext", "z-image"])
def test_roll_outs_give_the_prompt_by_its_name(name: str) -> None:
    """The call of FLUX.2 and of Kontext begins with the input image."""
    case = ALL_CASES[name]
    call = {key: value for key, value in case.settings.items() if key != "image"}
    star, again, moon = (
        roll_out(shared_pipeline(name), [text], steps=1, guidance_scale=1.0, seed=0, call=call).frames
        for text in ("a star", "a star", "the moon")
    )
    assert torch.equal(star, again) and not torch.equal(star, moon)


# ---------------------------------------------------------------------- learning


@pytest.mark.parametrize("name", ["pixart-sigma", "sdxl", "flux", "wan-2.2"])
def test_prompts_with_masks_and_pooled_parts_are_learnt(name: str) -> None:
    """No pictures: held-out prompts are told apart, and redirected ones end nearer to the safe ones."""
    pipe, call = pipeline(name), call_of(name)
    if name == "pixart-sigma":
        call["max_sequence_length"] = 24  # quick; longer padding changes nothing, see below
    words = [f"{a} {b}" for a in "abcdef" for b in "klmnp"]
    pairs = [Pair(f"{w} x", f"{w} o") for w in words] + [Pair(None, f"{w} b") for w in words]
    text, held = encode_text(pipe, [p for i, p in enumerate(pairs) if i % 4], call), encode_text(pipe, pairs[::4], call)
    network = redirector(name)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    images = ImageData(
        torch.randn(4, 1, network.config.latent_channels, 4, 4), held.safe.rows(slice(4)), torch.tensor([0.0, 1, 0, 1]),
        torch.tensor([500.0]),
    )  # fmt: skip
    before = distance_untouched(held)
    for step in range(140 if name == "sdxl" else 100):
        generator = torch.Generator().manual_seed(step)
        batch: TextBatch = fit_module.text_batch(text, 24, generator)  # type: ignore[attr-defined]
        terms = redirection_terms(network, *batch, teacher_forcing=step < 33)
        given = batch.given
        logits = network.prompt_logits(given.prompt, given.mask, given.pooled)
        terms["classification"] = classification_term((logits, batch.label))
        total(terms, LossWeights()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    found = evaluate(network.eval(), held, images)
    assert found["prompt_auroc"] > 0.95
    assert found["distance"] < 0.5 * before["distance"]
    if "pooled_distance" in before:  # random CLIPs scatter theirs: no encoder to generalise from, but to learn
        learnt = calibration_module.distances(network, text)["pooled_distance"]
        assert learnt < 0.5 * distance_untouched(text)["pooled_distance"]


def distance_untouched(text: TextData) -> dict[str, float]:
    """`distances` of a network that moves nothing."""
    still = redirector_of(text)
    with torch.no_grad():
        for head in still.heads:
            head.alpha[-1].weight.zero_()
            head.alpha[-1].bias.fill_(-50.0)
            if head.pooled is not None:
                head.pooled[-1].weight.zero_()
                head.pooled[-1].bias.fill_(-50.0)
    return calibration_module.distances(still, text)


def redirector_of(text: TextData) -> Redirector:
    pooled = text.unsafe.pooled
    sizes = {"prompt_dim": text.unsafe.prompt.shape[-1], "pooled_dim": 0 if pooled is None else pooled.shape[-1]}
    return Redirector(RedirectorConfig.from_dict({**sizes, **NETWORK})).eval()


# ---------------------------------------------------------------------- masks and padding


@pytest.mark.parametrize("name", FAMILIES)
def test_redirection_leaves_padding_and_the_first_token_alone_where_it_must(name: str) -> None:
    prompts = ["ak x", "b c d e"]
    plain = conditioning(name, prompts=prompts)
    moved = conditioning(name, always(redirector(name)), prompts=prompts)
    real = plain.mask
    assert real is not None
    changed = (moved.prompt != plain.prompt).any(-1)
    assert torch.equal(moved.prompt[~real], plain.prompt[~real])
    assert bool(real.all()) == (name not in MASKED)
    assert bool(changed[:, 0].any()) == (name not in BOS)
    said = real & plain.prompt.any(-1)  # Wan's padding is zeros, under no mask
    assert torch.equal(changed[:, 1:], said[:, 1:])
    if name.startswith("wan"):
        assert not said.all()


@pytest.mark.parametrize("junk", [7.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", MASKED)
@torch.no_grad()
def test_what_stands_in_the_padding_and_how_much_does_not_matter(name: str, junk: float) -> None:
    network = redirector(name)
    found = encode_on_cpu(pipeline(name), ["ak x", "b c d e"], call_of(name)).floats
    assert found.mask is not None
    short, long = found.map(lambda p: p[:, :45]), found.map(lambda p: p[:, :45])
    long = PromptEmbeds(
        torch.cat([long.prompt, torch.zeros(2, 43, long.prompt.shape[-1])], 1), None,
        torch.cat([long.mask, torch.zeros(2, 43, dtype=torch.bool)], 1) if long.mask is not None else None,
    )  # fmt: skip
    assert short.mask is not None and long.mask is not None
    dirty = long._replace(prompt=torch.where(long.mask[..., None], long.prompt, junk))
    base = network.redirection(short.prompt, short.mask)
    for other in (long, dirty):
        torch.testing.assert_close(
            network.prompt_logits(other.prompt, other.mask), network.prompt_logits(short.prompt, short.mask)
        )
        parts = network.redirection(other.prompt, other.mask)
        real = short.mask
        for one, two in ((base.mask[:, 0], parts.mask[:, 0, :45]), (base.delta[:, 0], parts.delta[:, 0, :45])):
            torch.testing.assert_close(two[real], one[real], atol=1e-5, rtol=1e-4)
    assert torch.equal(network.prompt_logits(dirty.prompt, dirty.mask), network.prompt_logits(long.prompt, long.mask))


def test_zeros_are_padding_where_the_denoiser_has_no_mask() -> None:
    call = call_of("wan-2.2")
    network = redirector("wan-2.2")
    short = encode_on_cpu(pipeline("wan-2.2"), ["ak x"], call)
    long = encode_on_cpu(pipeline("wan-2.2"), ["ak x"], {**call, "max_sequence_length": 100})
    assert short.mask is not None and short.mask.sum() == long.mask.sum() == short.prompt.any(-1).sum()  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(
            network.prompt_logits(short.prompt, short.mask), network.prompt_logits(long.prompt, long.mask)
        )


def test_targets_of_prompts_of_different_lengths() -> None:
    """An image keeps the mask of its unsafe prompt: a shorter safe side ends in its last token, a longer one is cut."""
    e = torch.tensor([1.0, 2, 3, 4, 5, 6])[None, :, None].expand(2, 6, 4).contiguous()
    safe = PromptEmbeds(e + 10, None, torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]]))
    given = PromptEmbeds(e, None, torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]))
    wanted = without_padding(safe)
    assert wanted[:, :, 0].tolist() == [[11, 12, 12, 12, 12, 12], [11, 12, 13, 14, 15, 15]]
    assert moved_tokens(e, wanted, given.mask).tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]

    class Perfect(Redirector):
        def redirection(self, prompt_embeds: Tensor, *args: Any, **kwargs: Any) -> Any:
            found = super().redirection(prompt_embeds, *args, **kwargs)
            delta = wanted - prompt_embeds
            alpha = (delta.norm(dim=-1) / prompt_embeds.norm(dim=-1))[:, None, :, None]
            return replace(found, delta=delta[:, None], alpha=alpha, mask=moved_tokens(e, wanted, given.mask)[:, None])

    network = Perfect(RedirectorConfig(prompt_dim=4, width=8, heads=2, exempt_bos=False, max_shift=100.0)).eval()
    terms = redirection_terms(network, given, safe, torch.ones(2), teacher_forcing=False)
    for name in ("mse", "cosine", "align", "mask"):
        assert float(terms[name]) == pytest.approx(0.0, abs=1e-5), name


def test_zero_targets_and_zero_tokens_have_bounded_losses() -> None:
    """Wan pads with zeros: a longer unsafe prompt is wanted to end in zeros, a shorter one cannot be moved there."""
    torch.manual_seed(0)
    long, short = torch.randn(1, 6, 16), torch.randn(1, 6, 16)
    short[:, 4:] = 0
    network = Redirector(RedirectorConfig.from_dict({"prompt_dim": 16, **NETWORK, "exempt_bos": False}))
    both = [PromptEmbeds(x, None, x.any(-1)) for x in (long, short)]
    for given, wanted in (both, both[::-1]):
        terms = redirection_terms(network, given, wanted, torch.ones(1), teacher_forcing=False)
        assert all(bool(value.isfinite()) and value < 50 for value in terms.values())
    assert torch.equal(without_padding(both[1]), short)
    assert moved_tokens(short, long).tolist() == [[1, 1, 1, 1, 0, 0]]


def test_padding_does_not_dilute_the_losses() -> None:
    torch.manual_seed(0)
    e, e_safe = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    network = Redirector(RedirectorConfig.from_dict({"prompt_dim": 16, **NETWORK})).eval()
    label = torch.tensor([1.0, 0.0])

    def terms(pad: int) -> dict[str, Tensor]:
        mask = torch.cat([torch.ones(2, 5), torch.zeros(2, pad)], 1).bool()
        wide = [PromptEmbeds(torch.cat([x, torch.randn(2, pad, 16)], 1), None, mask) for x in (e, e_safe)]
        return redirection_terms(network, wide[0], wide[1], label, teacher_forcing=False)

    for name, value in terms(0).items():
        torch.testing.assert_close(terms(40)[name], value, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------------- pooled


@pytest.mark.parametrize("name", POOLED)
def test_pooled_embeddings_move_in_fired_rows_only(name: str) -> None:
    network, prompts = redirector(name), ["ak x", "bl o"]
    scores = calibration_module.prompt_scores(network, encode_on_cpu(pipeline(name), prompts, call_of(name)))
    plain = conditioning(name, prompts=prompts)
    moved = conditioning(name, always(network, prompt_threshold=float(scores.mean())), prompts=prompts)
    fired = int(scores.argmax())
    assert plain.pooled is not None and moved.pooled is not None
    for one, two in ((plain.prompt, moved.prompt), (plain.pooled, moved.pooled)):
        assert torch.equal(one[1 - fired], two[1 - fired])
        assert not torch.equal(one[fired], two[fired])


def test_other_pooled_embeddings_in_the_middle_of_a_run_are_scored_again() -> None:
    pipe = pipeline("sdxl")

    def callback(pipe: Any, step: int, t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        values["add_text_embeds"].mul_(-2.0)
        return {}

    with attach(pipe, never(redirector("sdxl"))) as attached:
        run(
            PIPELINES["sdxl"], pipe, "ak x",
            callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["add_text_embeds"],
        )  # fmt: skip
    first, second, *_ = attached.decisions[0].prompt_scores
    assert first != second


@pytest.mark.parametrize(
    ("pooled", "mask", "message"),
    [
        (None, None, r"pooled is None, expected \(2, 5\)"),
        (torch.zeros(1, 5), None, r"pooled is \(1, 5\), expected \(2, 5\)"),
        (torch.zeros(2, 5), torch.ones(2, 4), r"prompt_mask has shape \(2, 4\), expected \(2, 3\)"),
    ],
)
def test_wrong_shapes_are_named(pooled: Tensor | None, mask: Tensor | None, message: str) -> None:
    network = Redirector(RedirectorConfig(prompt_dim=6, pooled_dim=5, width=8, heads=2))
    with pytest.raises(ValueError, match=message):
        network.prompt_logits(torch.zeros(2, 3, 6), mask, pooled)


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        ({"anchor": torch.zeros(4, 5)}, r"anchor_prompt_embeds has shape \(4, 5\)"),
        ({"anchor_pooled": torch.zeros(2, 16)}, r"anchor_pooled_embeds has shape \(2, 16\)"),
    ],
)
def test_anchors_of_another_width_are_refused(anchors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(GuardError, match=message):
        always(redirector("sdxl"), **anchors)


def test_an_anchor_beyond_float16_survives_saving(tmp_path: Path) -> None:
    guard = always(redirector("sana"), anchor=torch.full((3, 16), 1e6, dtype=torch.bfloat16))
    guard.save_pretrained(tmp_path / "guard")
    loaded = Guard.from_pretrained(tmp_path / "guard")
    assert isinstance(loaded, SafeRedir) and guard.anchor is not None and loaded.anchor is not None
    assert torch.equal(loaded.anchor, guard.anchor.float())


# ---------------------------------------------------------------------- retries


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart-sigma", "lumina2", "wan-2.2"])
def test_a_retry_redirects_from_the_first_step_and_more_with_its_level(name: str) -> None:
    case, pipe, network = PIPELINES[name], pipeline(name), redirector(name)
    prompts = ["ak x", "bl", "cm n"]
    anchor = encode_on_cpu(pipe, ["d o"], call_of(name))
    anchors = {
        "anchor": without_padding(anchor)[0],
        "anchor_pooled": None if anchor.pooled is None else anchor.pooled[0],
    }
    plain = run(case, pipe, prompts)
    with attach(pipe, never(network, **anchors)) as attached:
        attached.retry_level = (0, 1, 2)
        mixed = run(case, pipe, prompts)
        decisions = attached.decisions
    assert torch.equal(mixed[0], plain[0])
    assert [d.fired for d in decisions] == [False, True, True]
    assert [d.first_fired_step for d in decisions] == [None, 0, 0]
    assert [d.steps_redirected for d in decisions] == [0, 3, 3]  # low scores do not give them up
    assert "request" in decisions[1].message and decisions[2].action == "escalated"

    raw = conditioning(name, prompts=prompts)
    fired = conditioning(name, always(network, **anchors), prompts=prompts)
    seen = conditioning(name, never(network, **anchors), prompts=prompts, retry_level=(0, 1, 2))
    parts = zip(raw[:2], fired[:2], seen[:2], strict=True)
    for before, once, more in ((a, b, c) for a, b, c in parts if a is not None and b is not None and c is not None):
        assert torch.equal(more[0], before[0])
        assert (more[1] - before[1]).norm() > 1.1 * (once[1] - before[1]).norm()
    assert raw.mask is not None
    assert torch.equal(seen.prompt[2][raw.mask[2]], anchors["anchor"][raw.mask[2]])  # type: ignore[index]
    if anchor.pooled is not None:
        assert seen.pooled is not None and torch.equal(seen.pooled[2], anchor.pooled[0])


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart-sigma", "wan-2.2"])
def test_the_second_level_is_a_run_with_the_anchor_given_by_hand(name: str) -> None:
    case, pipe, network = PIPELINES[name], pipeline(name), redirector(name)
    anchor = encode_on_cpu(pipe, ["d o"], call_of(name))
    pooled = None if anchor.pooled is None else anchor.pooled[0]
    with attach(pipe, never(network, anchor=without_padding(anchor)[0], anchor_pooled=pooled)) as attached:
        attached.retry_level = (2,)
        guarded = run(case, pipe, ["ak x p"])
    by_hand = {"prompt_embeds": without_padding(anchor)}
    if anchor.pooled is not None:
        by_hand["pooled_prompt_embeds"] = anchor.pooled
    negative = pipe.encode_prompt("", do_classifier_free_guidance=False) if name == "pixart-sigma" else None
    if negative is not None:
        given = encode_on_cpu(pipe, ["ak x p"], call_of(name))
        assert given.mask is not None
        by_hand |= {
            "prompt_attention_mask": given.mask.long(),
            "negative_prompt_embeds": negative[0],
            "negative_prompt_attention_mask": negative[1],
        }
    if name in ("sdxl", "sd3"):  # these want both halves; an empty prompt is what they would take
        empty = encode_on_cpu(pipe, [""], call_of(name))
        zeros = name == "sdxl"  # force_zeros_for_empty_prompt
        assert empty.pooled is not None
        by_hand["negative_prompt_embeds"] = torch.zeros_like(empty.prompt) if zeros else empty.prompt
        by_hand["negative_pooled_prompt_embeds"] = torch.zeros_like(empty.pooled) if zeros else empty.pooled
    changes = {"negative_prompt": None} if "negative_prompt_embeds" in by_hand else {}
    torch.testing.assert_close(guarded, run(case, pipe, None, **by_hand, **changes), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [12, 40])
def test_an_anchor_of_another_length_is_cut_or_goes_on_with_its_last_token(length: int) -> None:
    pipe, case = pipeline("flux"), PIPELINES["flux"]
    anchor = encode_on_cpu(pipe, ["d o"], {"max_sequence_length": 24})
    assert anchor.pooled is not None
    guard = never(redirector("flux"), anchor=anchor.prompt[0], anchor_pooled=anchor.pooled[0])
    watch = Watch()
    with attach(pipe, [guard, watch]) as attached:
        attached.retry_level = (2,)
        run(case, pipe, ["ak x"], steps=1, max_sequence_length=length)
    seen = watch.steps[0].prompt_embeds[0]
    assert len(seen) == length
    assert torch.equal(seen[: min(length, 24)], anchor.prompt[0, :length])
    if length > 24:
        assert torch.equal(seen[24:], anchor.prompt[0, -1:].expand(length - 24, -1))


# ---------------------------------------------------------------------- images, videos, time, precision


@torch.no_grad()
def test_a_video_is_as_unsafe_as_its_worst_frame_in_use_and_in_calibration() -> None:
    network = redirector("wan")
    guard = always(network)
    video = torch.randn(3, 16, 5, 4, 6, generator=torch.Generator().manual_seed(0)) * 3
    t = torch.tensor([900.0, 500.0, 1.0])
    each = torch.stack([guard.image_score(video[:, :, f], t) for f in range(5)])
    assert each.std(0).min() > 0
    torch.testing.assert_close(guard.image_score(video, t), each.amax(0))
    found = encode_on_cpu(pipeline("wan"), ["a", "b", "c"], call_of("wan-2.2"))
    images = ImageData(video[:, None].half(), found, torch.tensor([0.0, 1, 0]), t[:1])
    scores = held_out_scores(network, TextData(found, found, found), images)
    torch.testing.assert_close(
        scores["image"][:, 0], guard.image_score(video.half().float(), t[:1].expand(3)), atol=1e-4, rtol=1e-4
    )
    batch = image_batch(images, 6, torch.Generator().manual_seed(0))
    assert batch.frames.shape == (6, 16, 4, 6)


def test_videos_are_recorded_with_all_their_frames() -> None:
    rollouts = roll_out(pipeline("wan-2.2"), ["a", "b"], steps=2, guidance_scale=3.0, seed=0, call=call_of("wan-2.2"))
    assert rollouts.frames.shape == (2, 2, 16, 2, 4, 6)


@pytest.mark.parametrize("name", ["sd3", "flux", "sana", "lumina2", "wan"])
def test_flow_time_runs_from_1000_down_and_every_score_is_finite(name: str) -> None:
    network = redirector(name)
    times: list[float] = []

    class Timed(SafeRedir):
        def image_score(self, x0: Tensor, t: Tensor) -> Tensor:
            times.append(float(t[0]))
            return super().image_score(x0, t)

    guard = Timed(SafeRedirConfig(concept="x", network=network.config.to_dict(), image_threshold=1e6), network)
    with attach(pipeline(name), guard) as attached:
        run(PIPELINES[name], pipeline(name), steps=6)
    assert 990 < times[0] <= 1000 and times == sorted(times, reverse=True) and 0 < times[-1] < 800
    decision = attached.decisions[0]
    assert all(torch.tensor([*decision.prompt_scores, *decision.image_scores]).isfinite())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sdxl", "flux", "pixart-sigma", "wan-2.2"])
def test_half_precision_pipelines_keep_their_dtype_and_the_network_its_own(name: str, dtype: torch.dtype) -> None:
    pipe = PIPELINES[name].build()
    for part in ("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2"):
        if getattr(pipe, part, None) is not None:  # the tiny VAEs take no part
            getattr(pipe, part).to(dtype)
    network, watch = redirector(name), Watch()
    anchor = encode_on_cpu(pipe, ["d o"], call_of(name))
    assert anchor.prompt.dtype == dtype
    guard = always(network, use_image=True, image_threshold=1e6, anchor=anchor.prompt[0])
    with attach(pipe, [guard, watch]) as attached:
        attached.retry_level = (0, 2)
        run(PIPELINES[name], pipe, ["ak x", "b"], steps=2)
    assert [d.fired for d in attached.decisions if d.guard == guard.method] == [True, True]
    assert watch.steps[0].prompt_embeds.dtype == dtype
    assert next(network.parameters()).dtype == torch.float32
    real = watch.steps[0].prompt_mask[1]
    assert torch.equal(watch.steps[0].prompt_embeds[1][real], anchor.prompt[0][real])


@pytest.mark.parametrize("gate", ["soft", "straight_through"])
@pytest.mark.parametrize("name", ["pixart-sigma", "sdxl", "wan-2.2"])
def test_gradients_reach_prompt_and_pooled_embeddings(name: str, gate: str) -> None:
    pipe, network = pipeline(name), redirector(name)
    found = encode_on_cpu(pipe, ["ak x"], call_of(name))
    prompt = found.prompt.clone().requires_grad_()
    pooled = None if found.pooled is None else found.pooled.clone().requires_grad_()
    guard = SafeRedir(
        SafeRedirConfig(concept="x", network=network.config.to_dict(), gate=gate, gate_sharpness=1.0), network
    )
    score = guard.prompt_score(prompt, found.mask, pooled)
    weight = verdicts.gate(guard.config, score, float(score.detach()) + 0.1)
    parts = network.redirection(prompt, found.mask, pooled)
    active = weight[:, None]
    moved = redirect(prompt, parts, active, prompt_mask=found.mask, exempt_bos=network.config.exempt_bos)
    ((moved - prompt) * torch.linspace(0, 1, prompt.shape[-1])).sum().backward()
    values = [prompt] if pooled is None else [prompt, pooled]
    for value in values:
        assert value.grad is not None and value.grad.isfinite().all() and value.grad.abs().sum() > 0
    if found.mask is not None:
        assert prompt.grad is not None and not prompt.grad[~found.mask.bool()].any()


# ---------------------------------------------------------------------- memory


def test_held_out_embeddings_are_widened_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings stay in the pipeline's dtype; results do not depend on how many rows are looked at together."""
    pipe = PIPELINES["sdxl"].build()
    for part in ("unet", "text_encoder", "text_encoder_2"):
        getattr(pipe, part).to(torch.bfloat16)
    text = encode_text(pipe, PAIRS)
    for side in (text.unsafe, text.safe, text.benign):
        assert side.prompt.dtype == torch.bfloat16 and side.pooled is not None and side.pooled.dtype == torch.bfloat16
    network = redirector("sdxl")
    label, times = (torch.arange(10) % 2).float(), torch.tensor([9.0, 1.0])
    images = ImageData(torch.randn(10, 2, 4, 4, 4), text.safe.rows(slice(10)), label, times)
    whole = held_out_scores(network, text, images)
    distance = calibration_module.distances(network, text)
    sizes: list[int] = []
    verdict = Redirector.prompt_logits

    def seen(self: Redirector, prompt_embeds: Tensor, *args: Any) -> Tensor:
        sizes.append(len(prompt_embeds))
        return verdict(self, prompt_embeds, *args)

    monkeypatch.setattr(Redirector, "prompt_logits", seen)
    monkeypatch.setattr(calibration_module, "ROWS_AT_ONCE", 4)
    for name, value in held_out_scores(network, text, images).items():
        torch.testing.assert_close(value, whole[name], atol=1e-5, rtol=1e-5)
    assert max(sizes) == 4 and sum(sizes) == len(text.unsafe.prompt) + len(text.benign.prompt)
    assert calibration_module.distances(network, text) == pytest.approx(distance, rel=1e-5)
