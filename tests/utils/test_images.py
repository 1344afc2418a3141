"""The reader of image files: pixel values computed here with numpy alone, for every kind of file that people have."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from saferedir.errors import ImageFileError
from saferedir.guards.negation.build import image_sources
from saferedir.judges.images import read_image_tensor
from saferedir.training.duo.pair_files import ImagePair, load_pair
from saferedir.utils.images import MAX_PIXELS, check_image, image_suffixes, read_array, read_image, to_rgb

RAMP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
BYTES = (RAMP >> 8).astype(np.uint8)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def png(values: np.ndarray, colour: int, transparent: bytes | None = None) -> bytes:
    """A 16-bit PNG, written by the letter of its specification; colour 0 grey, 2 RGB, 4 grey with alpha, 6 RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    key = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + head + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(path: Path, values: np.ndarray, order: str, kind: int, bits: int, photometric: int = 1) -> Path:
    """An uncompressed grey TIFF; kind: 1 unsigned, 2 signed, 3 float."""
    mark, data = (b"II", values.tobytes()) if order == "<" else (b"MM", values.byteswap().tobytes())
    height, width = values.shape
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, kind)]
    out = mark + struct.pack(f"{order}HI", 42, 8 + len(data)) + data + struct.pack(f"{order}H", len(tags))
    for tag, size, value in tags:
        out += struct.pack(f"{order}HHI", tag, size, 1)
        out += struct.pack(f"{order}HH", value, 0) if size == 3 else struct.pack(f"{order}I", value)
    path.write_bytes(out + b"\0\0\0\0")
    return path


def test_sixteen_bits_keep_their_high_byte_in_every_format(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 65536, (64, 64, 4)).astype(np.uint16)
    colour[..., 3] = 65535
    (tmp_path / "grey.png").write_bytes(png(RAMP, 0))
    (tmp_path / "rgb.png").write_bytes(png(colour[..., :3], 2))
    (tmp_path / "rgba.png").write_bytes(png(colour, 6))
    (tmp_path / "la.png").write_bytes(png(np.stack([RAMP, np.full_like(RAMP, 65535)], axis=2), 4))
    for name in ("grey.tif", "grey.pgm", "grey.jp2"):
        Image.fromarray(RAMP).save(tmp_path / name, **({"irreversible": False} if name.endswith("jp2") else {}))
    tiff(tmp_path / "big.tif", RAMP, ">", 1, 16)
    for name in ("grey.png", "la.png", "grey.tif", "grey.pgm", "grey.jp2", "big.tif"):
        assert (read_array(tmp_path / name) == grey(BYTES)).all(), name
    for name in ("rgb.png", "rgba.png"):
        assert (read_array(tmp_path / name) == colour[..., :3] >> 8).all(), name
    twelve = tiff(tmp_path / "white-is-zero.tif", RAMP, "<", 1, 16, photometric=0)
    assert (read_array(twelve) == grey(255 - BYTES)).all()
    signed = tiff(tmp_path / "signed.tif", (RAMP >> 1).astype(np.int16), "<", 2, 16)
    assert (read_array(signed) == grey(BYTES)).all()


@pytest.mark.parametrize("order", ["<", ">"])
def test_wide_integers_take_the_smallest_range_that_holds_them(tmp_path: Path, order: str) -> None:
    full = np.tile(np.linspace(0, 2**31 - 1, 64), (64, 1))
    cases = [
        (BYTES.astype(np.int32), BYTES),
        (RAMP.astype(np.int32), BYTES),
        (full.astype(np.int32), (full.astype(np.int64) >> 23).astype(np.uint8)),
    ]
    for values, expected in cases:
        assert (read_array(tiff(tmp_path / "i.tif", values, order, 2, 32)) == grey(expected)).all()
    if order == "<":  # Pillow opens unsigned ones of this order only
        unsigned = tiff(tmp_path / "u.tif", (full * 2).astype(np.uint32), order, 1, 32)
        assert (read_array(unsigned) == grey(((full * 2).astype(np.int64) >> 24).astype(np.uint8))).all()
    for wrong, sentence in (
        (RAMP.astype(np.int32) - 1, "negative values"),
        (RAMP.astype(np.int32) * 9, "8 or 16 bits"),
    ):
        with pytest.raises(ImageFileError, match=f"wrong.tif cannot be read as an image: .*{sentence}"):
            read_image(tiff(tmp_path / "wrong.tif", wrong, order, 2, 32))


@pytest.mark.parametrize("order", ["<", ">"])
def test_floats_take_the_smallest_range_and_never_a_guess(tmp_path: Path, order: str) -> None:
    unit = (RAMP / 65535).astype(np.float32)
    for values, expected in (
        (unit, np.round(unit * 255)),
        (unit * np.float32(1.0005), np.round((unit * np.float32(1.0005)).clip(0, 1) * 255)),
        (BYTES.astype(np.float32), BYTES),
        (RAMP.astype(np.float32), BYTES),
    ):
        assert (read_array(tiff(tmp_path / "f.tif", values, order, 3, 32)) == grey(expected.astype(np.uint8))).all()
    for low, high, sentence in ((0, np.nan, "NaN"), (0, np.inf, "infinity"), (-1, 1, "from -1 to 1"), (0, 7, "to 7")):
        values = np.full((8, 8), low, np.float32)
        values[3, 3] = high
        with pytest.raises(ImageFileError, match=sentence):
            read_image(tiff(tmp_path / "wrong.tif", values, order, 3, 32))


def test_what_is_transparent_lies_on_white_for_all_three_uses(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (32, 32, 4), dtype=np.uint8)
    alpha = rgba[..., 3:].astype(float) / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(rgba).save(tmp_path / "rgba.webp", lossless=True, exact=True)
    Image.fromarray(rgba).save(tmp_path / "rgba.tif")
    la = rgba[..., [0, 3]]
    Image.fromarray(la).save(tmp_path / "la.png")
    key = Image.new("RGB", (32, 32), "red")
    key.paste((0, 0, 255), (0, 0, 16, 32))
    key.save(tmp_path / "key.png", transparency=(0, 0, 255))
    key.quantize(2).save(tmp_path / "palette.gif", transparency=key.quantize(2).getpixel((0, 0)))
    clear = np.array(key.convert("RGBA"))
    clear[:, :16, 3] = 0
    Image.fromarray(clear).quantize(4).save(tmp_path / "palette.png")
    dots = Image.fromarray(np.arange(1024).reshape(32, 32) % 2 == 0)
    dots.save(tmp_path / "bits.png", transparency=0)
    half = np.full((32, 32, 3), (255, 0, 0))
    half[:, :16] = 255
    for name, wanted in {
        "rgba.png": expected,
        "rgba.webp": expected,
        "rgba.tif": expected,
        "la.png": grey(la[..., 0]) * alpha + 255 * (1 - alpha),
        "key.png": half,
        "palette.gif": half,
        "palette.png": half,
        "bits.png": np.full((32, 32, 3), 255),
    }.items():
        path = tmp_path / name
        judged = (read_image_tensor(path).permute(1, 2, 0).numpy() * 255).round()
        sources = {source.name: source for source in image_sources(tmp_path, 32, 32)}
        assert np.abs(judged - wanted).max() <= 1, name
        assert (sources[name].load() == judged).all(), name
        assert (load_pair(ImagePair(path, path), 32, 32) == judged).all(), name


def test_a_colour_key_of_sixteen_bits_is_transparent_too(tmp_path: Path) -> None:
    colour = np.full((8, 8, 3), (40000, 20000, 300), np.uint16)
    colour[0] = (9, 9, 9)
    (tmp_path / "rgb.png").write_bytes(png(colour, 2, struct.pack(">HHH", 40000, 20000, 300)))
    found = read_array(tmp_path / "rgb.png")
    assert (found[1:] == 255).all() and (found[0] == 0).all()
    (tmp_path / "grey.png").write_bytes(png(colour[..., 0], 0, struct.pack(">H", 40000)))
    found = read_array(tmp_path / "grey.png")
    assert (found[1:] == 255).all() and (found[0] == 0).all()


def test_other_colour_spaces(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    Image.new("YCbCr", (16, 16), (76, 85, 255)).save(tmp_path / "ycbcr.tif")
    Image.new("LAB", (16, 16), (136, 208, 195)).save(tmp_path / "lab.tif")
    if int(PIL.__version__.split(".")[0]) < 13:  # cannot read such a file: it is refused, never read as something else
        with pytest.raises(ImageFileError):
            read_array(tmp_path / "ycbcr.tif")
        (tmp_path / "ycbcr.tif").unlink()
    for name in sorted(path.name for path in tmp_path.iterdir()):
        off = np.abs(read_array(tmp_path / name)[8, 8].astype(int) - (255, 0, 0)).max()
        assert off <= (12 if name == "lab.tif" else 4), (name, off)  # LAB's white is not that of sRGB
    assert to_rgb(Image.new("HSV", (4, 4), (0, 255, 255))).getpixel((0, 0)) == (255, 0, 0)
    assert to_rgb(Image.new("PA", (4, 4))).mode == "RGB" and to_rgb(Image.new("La", (4, 4))).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_obeyed_by_all_three(tmp_path: Path, orientation: int) -> None:
    upright = np.random.default_rng(2).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright), 7: np.rot90(upright, 2).swapaxes(0, 1), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.tif"):
        path = tmp_path / name
        Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
        assert (read_array(path) == upright).all(), name
        assert (image_sources(tmp_path, 6, 4)[0].load() == upright).all()
        assert (load_pair(ImagePair(path, path), 6, 4) == upright).all()


def test_a_wide_image_is_turned_too_and_a_damaged_exif_block_turns_nothing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(RAMP[:4]).copy()).save(tmp_path / "a.png", exif=exif)
    assert (read_array(tmp_path / "a.png") == grey(BYTES[:4])).all()
    Image.fromarray(grey(BYTES)).save(tmp_path / "b.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert (read_array(tmp_path / "b.png") == grey(BYTES)).all()


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        more = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **more)
        assert (read_array(tmp_path / name) == (255, 0, 0)).all(), name


@pytest.mark.parametrize("is_lax", [False, True])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".avif", ".jp2", ".ppm", ".qoi"])
def test_a_truncated_file_is_never_half_an_image(
    tmp_path: Path, suffix: str, is_lax: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", is_lax)  # as some programs set it for their own files
    values = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    Image.fromarray(values).save(whole)
    data = whole.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        for read in (read_image, check_image):
            with pytest.raises(ImageFileError, match=f"cut{suffix} cannot be read as an image"):
                read(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is is_lax
    with pytest.raises(Exception, match=f"cut{suffix} is no image that can be read"):
        load_pair(ImagePair(whole, path), 64, 64)


def test_damage_within_a_png_is_found_by_its_checksums(tmp_path: Path) -> None:
    path = tmp_path / "flat.png"
    Image.fromarray(grey(BYTES)).save(path, compress_level=0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # one level in one pixel
    path.write_bytes(data)
    with pytest.raises(ImageFileError, match=r"flat\.png"):
        read_image(path)


def test_other_files_that_are_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "program.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    head = png(np.zeros((1, 1), np.uint16), 0)
    side = 2 * int(MAX_PIXELS**0.5)
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    bomb = head[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + head[33:]
    (tmp_path / "bomb.png").write_bytes(bomb)
    (tmp_path / "folder.png").mkdir()
    for name, reason in {
        "empty.png": "it is empty",
        "text.png": "it is no image",
        "program.png": "it is no image",  # Pillow would run Ghostscript on it
        "bomb.png": "more than 89,478,485",
        "folder.png": "it is no regular file",
        "none.png": "there is no such file",
    }.items():
        with pytest.raises(ImageFileError, match=f"{name} cannot be read as an image: .*{reason}"):
            read_image(tmp_path / name)


def test_suffixes_are_those_that_pillow_can_decode() -> None:
    assert {
        ".png",
        ".jpg",
        ".jpeg",
        ".jfif",
        ".jpe",
        ".webp",
        ".avif",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
    } <= image_suffixes()
    assert not {".eps", ".ps", ".pdf", ".mpg", ".h5", ".grib", ".wmf", ".heic"} & image_suffixes()


def test_an_rgb_image_passes_unchanged_in_every_bit() -> None:
    values = np.random.default_rng(4).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    assert (np.asarray(to_rgb(Image.open(buffer))) == values).all()
    assert TiffImagePlugin.WRITE_LIBTIFF is False  # what the TIFF files above rely on
