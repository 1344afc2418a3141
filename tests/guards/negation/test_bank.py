"""The negation set: its file, calibration, building from pictures, the VAE it belongs to, and its optional index."""

from __future__ import annotations

import math
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.conftest import make_pipeline
from tests.guards.negation.oracle import frame, randn
from tests.tiny_pipelines import PIPELINES

import saferedir as sr
from saferedir.errors import BackboneMismatchError, GuardConfigError, GuardError, GuardNotFoundError
from saferedir.guards.negation import NegationSet, attend, calibration, gaussian_xt
from saferedir.guards.negation.build import BuildReport, SetWriter, build_negation_set, image_sources, prompt_sources
from saferedir.guards.negation.calibration import calibrate
from saferedir.guards.spell import SPELL
from saferedir.pipelines.fingerprint import backbone_fingerprint, vae_fingerprint
from saferedir.pipelines.latents import default_size, encode_images, fit_image, latent_constants


def picture(seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def make_folder(folder: Path, count: int = 5) -> Path:
    """`count` pictures, one duplicate, one file that is no picture, and one cut off."""
    (folder / "deep").mkdir(parents=True)
    for seed in range(count):
        picture(seed).save(folder / f"{seed}.png")
    picture(0).save(folder / "deep" / "again.png")
    (folder / "broken.png").write_bytes(b"no picture")
    whole = (folder / "1.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("not looked at")
    return folder


def build(pipe: Any, sources: dict[str, Any], out: Path, **settings: Any) -> BuildReport:
    return build_negation_set(pipe.vae, sources, out, facts={"height": 32, "width": 32}, batch=2, **settings)


# ---------------------------------------------------------------- the set


def test_file_round_trip_keeps_everything(tmp_path: Path) -> None:
    negation = NegationSet.from_latents(randn(9, 2, 3, 4) + 5, randn(4, 2, 3, 4, seed=1), {"vae": "abc", "height": 24})
    for stream in (False, True):
        found = NegationSet.open(negation.save(tmp_path / "set.safetensors"), stream=stream)
        assert found.shape == (2, 3, 4) and len(found) == 9 and found.facts == {"vae": "abc", "height": 24}
        for name, value in negation.tensors().items():
            assert torch.equal(found.tensors()[name], value), name
    torch.testing.assert_close(found.latents(), randn(9, 2, 3, 4) + 5, rtol=0, atol=2e-3)
    assert torch.allclose(
        found.references.norms, (found.latents().flatten(1) - found.references.centre).square().sum(1), 1e-4
    )


def test_writer_makes_the_same_file_as_save(tmp_path: Path) -> None:
    negation = NegationSet.from_latents(randn(9, 2, 3, 4), randn(4, 2, 3, 4, seed=1), {"vae": "abc"})
    writer = SetWriter(tmp_path / "written.safetensors", (2, 3, 4), 9, 4, {"vae": "abc"})
    centre = negation.references.centre.view(2, 3, 4)
    writer.put("centre", centre)
    writer.put_rows("", 0, randn(9, 2, 3, 4)[:5] - centre)
    writer.put_rows("", 5, randn(9, 2, 3, 4)[5:] - centre)
    writer.put_rows("benign_", 0, randn(4, 2, 3, 4, seed=1) - centre)
    writer.calibrate()
    found = NegationSet.open(tmp_path / "written.safetensors")
    for name, value in negation.tensors().items():
        torch.testing.assert_close(found.tensors()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_bad_sets_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(GuardConfigError, match="the negation set is empty"):
        NegationSet.from_latents(torch.zeros(0, 2, 3, 3))
    with pytest.raises(GuardConfigError, match="not finite"):
        NegationSet.from_latents(torch.full((1, 2, 3, 3), math.nan))
    with pytest.raises(GuardConfigError, match="differ in shape"):
        NegationSet.from_latents(randn(2, 2, 3, 3), randn(2, 2, 4, 4))
    with pytest.raises(GuardNotFoundError, match="there is no negation set"):
        NegationSet.open(tmp_path / "none.safetensors")
    save_file({"rows": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(GuardConfigError, match="is no negation set"):
        NegationSet.open(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(struct.pack("<Q", 100) + b"{")
    with pytest.raises(GuardConfigError, match="is damaged"):
        NegationSet.open(tmp_path / "cut.safetensors")
    tensors = NegationSet.from_latents(randn(3, 2, 3, 3)).tensors()
    with pytest.raises(GuardConfigError, match="do not fit"):
        NegationSet.from_tensors({**tensors, "norms": torch.zeros(2)})
    with pytest.raises(GuardConfigError, match="this is no negation set"):
        NegationSet.from_tensors({"rows": tensors["rows"]})


@pytest.mark.parametrize("count", [40, 9, 4])
def test_calibrated_kernel_reaches_its_effective_size(count: int) -> None:
    negation = NegationSet.from_latents(3 * randn(count, 4, 8, 8), dtype=torch.float32)
    for u in (0.93, 0.824):
        kappa, threshold = negation.calibration.at(u)
        ratio, noise = (1 - u) / u, randn(count, 256, seed=3)
        rows = negation.latents().flatten(1)
        sizes, scores = [], []
        for i in range(count):
            others = torch.arange(count) != i
            half = -0.5 * (ratio * (rows[i] - rows[others]) + noise[i]).square().sum(dim=1)
            sizes.append(1 / (kappa * half).softmax(dim=0).square().sum())
            scores.append((kappa * half).logsumexp(dim=0) / kappa)
        assert float(torch.stack(sizes).median()) == pytest.approx(min(8, count / 2), rel=0.25)
        assert float((torch.stack(scores) >= threshold).float().mean()) >= 0.7


def test_calibration_of_tiny_sets_weighs_all_alike() -> None:
    for count in (1, 2, 3):
        found = NegationSet.from_latents(randn(count, 2, 3, 3)).calibration
        assert found.at(0.9) == (0.0, pytest.approx(calibration.ALWAYS_OPEN))
        assert math.isnan(found.radius) == (count == 1)


def test_calibration_interpolates_between_its_grid() -> None:
    references = NegationSet.from_latents(randn(60, 4, 8, 8), dtype=torch.float32).references
    coarse = calibrate(references)
    for u in (0.85, 0.9, 0.95):
        exact = calibrate(references, grid=(u,))
        kappa, threshold = coarse.at(u)
        assert kappa == pytest.approx(float(exact.kappa[0]), rel=0.1)
        assert threshold == pytest.approx(float(exact.threshold[0]), rel=0.02)


@pytest.mark.parametrize("u", [0.82, 0.844, 0.9, 0.95])
def test_threshold_between_grid_points_is_right_to_a_tenth_of_a_deviation(u: float) -> None:
    """At Stable Diffusion's size: half the squared length of D = 16384 numbers of noise deviates by sqrt(D / 2)."""
    references = NegationSet.from_latents(0.9 * randn(40, 4, 64, 64), dtype=torch.float32).references
    exact = float(calibrate(references, grid=(u,)).threshold[0])
    assert abs(calibrate(references).at(u)[1] - exact) <= 0.1 * math.sqrt(16384 / 2)


# ---------------------------------------------------------------- pictures to latents


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart-sigma", "sana", "lumina2", "wan"])
def test_latents_are_in_the_samplers_frame(name: str) -> None:
    """A VAE's decoder undoes what its pipeline's own step from latents to pixels undoes."""
    pipe = PIPELINES[name].build()
    shift, scale = latent_constants(pipe.vae)
    latents = encode_images(pipe.vae, [fit_image(picture(i), 32, 32) for i in range(2)])
    pixels = torch.stack([torch.from_numpy(fit_image(picture(i), 32, 32)) for i in range(2)])
    pixels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    found = pipe.vae.encode(pixels[:, :, None] if name == "wan" else pixels)
    z = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent
    view = (1, -1, *(1,) * (z.ndim - 2))
    torch.testing.assert_close(latents, (z - torch.tensor(shift).view(view)) * torch.tensor(scale).view(view))
    config = pipe.vae.config
    if config.get("latents_mean") is None:
        assert shift == (config.get("shift_factor") or 0.0,) and scale == (config["scaling_factor"],)
    else:
        assert len(shift) == len(scale) == latents.shape[1]


def test_half_precision_vae_encodes_in_float32_and_stays_half() -> None:
    pipe, half = make_pipeline(), make_pipeline(dtype=torch.float16)
    pictures = [fit_image(picture(0), 32, 32)]
    torch.testing.assert_close(
        encode_images(half.vae, pictures), encode_images(pipe.vae, pictures), rtol=1e-2, atol=1e-3
    )
    assert next(half.vae.parameters()).dtype == torch.float16


def test_pictures_are_cropped_turned_and_flattened() -> None:
    wide = Image.new("RGB", (600, 200), "blue")
    wide.paste("red", (160, 0, 440, 200))
    assert (fit_image(wide, 32, 32) == (255, 0, 0)).all()
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert fit_image(clear, 4, 4).min() == 255
    assert default_size(make_pipeline()) == (32, 32)


# ---------------------------------------------------------------- building


def test_build_skips_what_it_cannot_read_and_drops_duplicates(pipe: Any, tmp_path: Path) -> None:
    sources = image_sources(make_folder(tmp_path / "in"), 32, 32)
    steps: list[int] = []
    report = build(
        pipe, {"references": sources, "benign": sources[:2]}, tmp_path / "set.safetensors", advance=steps.append
    )
    assert (report.references, report.benign, report.duplicates) == (5, 2, 1)
    assert set(report.skipped) == {"broken.png", "cut.png"} and sum(steps) == len(sources) + 2
    found = NegationSet.open(tmp_path / "set.safetensors")
    expected = encode_images(pipe.vae, [fit_image(picture(seed), 32, 32) for seed in range(5)])
    torch.testing.assert_close(found.latents(), expected, rtol=0, atol=5e-3)
    assert found.facts["vae"] == vae_fingerprint(pipe.vae) and found.benign is not None
    assert not (tmp_path / "set.safetensors.work").exists()


def test_build_goes_on_where_it_was_killed(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {"references": image_sources(make_folder(tmp_path / "in"), 32, 32)}
    whole = tmp_path / "whole.safetensors"
    build(pipe, sources, whole)
    out, seen = tmp_path / "set.safetensors", []

    def kill(count: int) -> None:
        seen.append(count)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(pipe, sources, out, advance=kill)
    assert not out.exists()
    calls: list[int] = []
    encode = encode_images
    monkeypatch.setattr(
        "saferedir.guards.negation.build.encode_images", lambda vae, some: calls.append(len(some)) or encode(vae, some)
    )
    with pytest.raises(GuardConfigError, match="other images or settings"):
        build_negation_set(pipe.vae, sources, out, facts={"height": 32, "width": 32}, batch=3)
    report = build(pipe, sources, out)
    assert sum(calls) < 5 and report.references == 5
    assert all(torch.equal(a, b) for a, b in zip(load_file(out).values(), load_file(whole).values(), strict=True))


def test_empty_sources_are_one_sentence(pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(GuardConfigError, match="holds no image"):
        image_sources(tmp_path / "in", 32, 32)
    with pytest.raises(GuardConfigError, match="is no folder"):
        image_sources(tmp_path / "none", 32, 32)
    (tmp_path / "in" / "broken.png").write_bytes(b"no")
    with pytest.raises(GuardConfigError, match=r"empty \(1 images could not be read\)"):
        build(pipe, {"references": image_sources(tmp_path / "in", 32, 32)}, tmp_path / "set.safetensors")


def test_prompts_are_drawn_by_the_pipeline(pipe: Any, tmp_path: Path) -> None:
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0}
    sources = prompt_sources(pipe, ["a star", "a moon", "a star"], 32, 32, seed=4, settings=settings)
    assert [source.name for source in sources] == ["a star", "a moon"]
    report = build(pipe, {"references": sources}, tmp_path / "set.safetensors")
    assert report.references == 2 and NegationSet.open(tmp_path / "set.safetensors").shape == (4, 8, 8)


# ---------------------------------------------------------------- the VAE it belongs to


def test_a_set_of_another_vae_is_refused(pipe: Any) -> None:
    negation = NegationSet.from_latents(randn(4, 4, 8, 8), facts={"vae": vae_fingerprint(pipe.vae)})
    guard = SPELL.from_set(negation, concept="star")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sr.attach(pipe, guard).detach()
    with torch.no_grad():
        pipe.vae.decoder.conv_in.weight.add_(1.0)
    sr.attach(pipe, guard).detach()  # latents mean the same to a fine-tuned decoder
    with torch.no_grad():
        pipe.vae.encoder.conv_in.weight.add_(0.1)
    with pytest.raises(BackboneMismatchError, match="encoded by another VAE"):
        sr.attach(pipe, guard)
    sr.attach(pipe, guard, force=True).detach()


def test_fingerprint_of_a_vae_knows_its_constants_and_survives_half(pipe: Any) -> None:
    before = vae_fingerprint(pipe.vae)
    assert (
        before
        == vae_fingerprint(make_pipeline(dtype=torch.float16).vae)
        == backbone_fingerprint(pipe)["weights"]["vae"]
    )
    pipe.vae.register_to_config(scaling_factor=0.5)
    assert vae_fingerprint(pipe.vae) != before


def test_replaced_set_file_of_another_vae_is_refused(tmp_path: Path) -> None:
    path = NegationSet.from_latents(randn(4, 4, 8, 8), facts={"vae": "one"}).save(tmp_path / "set.safetensors")
    guard = SPELL.from_set(NegationSet.open(path, stream=True), concept="star")
    folder = guard.save_pretrained(tmp_path / "guard")
    for facts in ({"vae": "two"}, {}):
        NegationSet.from_latents(randn(4, 4, 8, 8), facts=facts).save(path)
        with pytest.raises(GuardConfigError, match=r"another VAE \((two|unknown)\)"):
            sr.Guard.from_pretrained(folder)


def test_a_set_that_does_not_say_its_vae_is_warned_of() -> None:
    negation = NegationSet.from_latents(randn(4, 4, 8, 8))
    with pytest.warns(UserWarning, match="does not say which VAE"):
        SPELL.from_set(negation, concept="star")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SPELL.from_set(negation, concept="star", backbone=None).config.backbone is None


def test_pictures_and_videos_are_not_compared() -> None:
    pictures = NegationSet.from_latents(randn(4, 4, 1, 8, 8))
    with pytest.raises(GuardError, match=r"1 frames in time.*have 3.*num_frames=1"):
        pictures.require_shape((4, 3, 8, 8))
    with pytest.raises(GuardError, match="--height"):
        pictures.require_shape((4, 1, 4, 8))


# ---------------------------------------------------------------- the optional index


def test_index_approximates_the_exact_answer(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    from saferedir.guards.negation.index import CandidateIndex, attend_near

    negation = NegationSet.from_latents(randn(3000, 4, 4, 4) + randn(3000, 1, 1, 1, seed=1), dtype=torch.float32)
    index = CandidateIndex.build(negation.references)
    index.save(tmp_path / "set.faiss")
    index = CandidateIndex.open(tmp_path / "set.faiss", negation.references)
    alpha, sigma = frame(401)
    x = alpha * negation.latents()[:6].flatten(1) + 0.3 * sigma * randn(6, 64, seed=2)
    query = gaussian_xt(x, negation.references.centre, alpha, sigma)
    exact, near = attend(query, negation.references), attend_near(query, x / alpha, index, 64)
    torch.testing.assert_close(near.mean, exact.mean, rtol=5e-2, atol=5e-2)
    single = attend_near(gaussian_xt(x[2:3], negation.references.centre, alpha, sigma), x[2:3] / alpha, index, 64)
    torch.testing.assert_close(single.mean[0], near.mean[2], rtol=1e-4, atol=1e-5)
    others = NegationSet.from_latents(randn(3000, 4, 4, 4, seed=9), dtype=torch.float32)
    with pytest.raises(GuardConfigError, match="for another negation set; build the index again"):
        CandidateIndex.open(tmp_path / "set.faiss", others.references)
    (tmp_path / "other.faiss").write_bytes(b"something else")
    with pytest.raises(GuardConfigError, match="is no index"):
        CandidateIndex.open(tmp_path / "other.faiss", negation.references)
    with pytest.raises(GuardConfigError, match="build the index again"):
        CandidateIndex(index.index, NegationSet.from_latents(randn(3, 4, 4, 4)).references)


@pytest.mark.parametrize("stream", [False, True])
def test_an_index_is_fitted_on_a_sample_of_bounded_size(
    stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faiss = pytest.importorskip("faiss")
    from saferedir.guards.negation import index as index_file

    path = NegationSet.from_latents(randn(3000, 4, 4, 4)).save(tmp_path / "set.safetensors")
    references = NegationSet.open(path, stream=stream).references
    monkeypatch.setattr(index_file, "TRAIN_BYTES", 500 * 64 * 4)
    shapes, factory = [], faiss.index_factory

    class Watched:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def train(self, rows: Any) -> None:
            shapes.append(rows.shape)
            self.inner.train(rows)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    monkeypatch.setattr(faiss, "index_factory", lambda *given: Watched(factory(*given)))
    built = index_file.CandidateIndex.build(references)
    assert shapes == [(500, 64)] and built.index.ntotal == 3000
    with pytest.raises(GuardConfigError, match=r"lists is 501; expected at most 500"):
        index_file.CandidateIndex.build(references, lists=501)


@pytest.mark.parametrize("stream", [False, True])
def test_rows_read_block_by_block_are_those_picked(
    stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saferedir.guards.negation import reference_rows
    from saferedir.guards.negation.index import _rows_of

    monkeypatch.setattr(reference_rows, "BLOCK", 64 * 7)  # seven references a block
    path = NegationSet.from_latents(randn(100, 4, 4, 4)).save(tmp_path / "set.safetensors")
    references = NegationSet.open(path, stream=stream).references
    chosen = torch.tensor([0, 6, 7, 8, 55, 56, 98, 99])
    assert torch.equal(_rows_of(references, chosen), references.pick(chosen).rows.float())


def test_eight_bit_rows_round_by_little_and_come_back_as_they_were(tmp_path: Path) -> None:
    latents = torch.randn(40, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = NegationSet.from_latents(latents[:30], latents[30:], {"vae": "v"}, dtype=torch.int8)
    error = (found.latents() - latents[:30]).flatten(1).abs().amax(dim=1)
    centred = (latents[:30] - latents[:30].mean(dim=0)).flatten(1)
    assert bool((error <= centred.abs().amax(dim=1) / 127 * 0.51).all())
    tensors = found.tensors()
    assert tensors["rows"].dtype == tensors["benign_rows"].dtype == torch.int8
    path = found.save(tmp_path / "set.safetensors")
    for stream in (False, True):
        again = NegationSet.open(path, stream=stream)
        assert torch.equal(again.latents(), found.latents())
        assert all(torch.equal(value, again.tensors()[name]) for name, value in tensors.items())
        picked = again.references.pick(torch.tensor([7, 2]))
        assert torch.equal(picked.rows, found.references.rows.flatten(1)[[7, 2]])
        x = torch.randn(2, 256, generator=torch.Generator().manual_seed(1))
        exact, read = (attend(gaussian_xt(x, s.references.centre, 0.3, 0.9, 0.1), s.references) for s in (found, again))
        assert torch.allclose(exact.mean, read.mean, atol=1e-6) and torch.allclose(exact.log_sum, read.log_sum)


def test_eight_bit_rows_without_their_units_are_refused() -> None:
    tensors = NegationSet.from_latents(torch.randn(5, 1, 2, 2), dtype=torch.int8).tensors()
    del tensors["units"]
    with pytest.raises(sr.GuardConfigError, match="do not fit each other"):
        NegationSet.from_tensors(tensors)
