"""How often the watermark "wavelet" is read back from PictoWorld's scenes, by size and file format, and what it costs in noise.

Run: python benchmarks/watermark.py
Prints the table of docs/server.md: rates with 95 % Wilson intervals, and the PSNR of marked images. Needs the extra `watermark`.
"""

from __future__ import annotations

import argparse
import io
import random

import numpy as np
from PIL import Image

from saferedir.metrics.rates import Rate
from saferedir.pictoworld.renderer import render
from saferedir.pictoworld.scene import random_scene
from saferedir.server.watermark import PAYLOAD
from saferedir.server.wavelet import WaveletMark

FORMATS = {"PNG": ("PNG", 100), "JPEG 90": ("JPEG", 90), "JPEG 80": ("JPEG", 80), "WebP 90": ("WEBP", 90)}


def stored(image: Image.Image, name: str) -> Image.Image:
    """The image as it comes out of a file."""
    file, (output_format, quality) = io.BytesIO(), FORMATS[name]
    image.save(file, output_format, quality=quality)
    return Image.open(file)


def main() -> None:
    """A row a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--n", type=int, nargs="+", default=[200, 100, 40, 20], help="scenes, one number a size")
    options = parser.parse_args()
    mark = WaveletMark()
    print(
        f"| size | n | {' | '.join(FORMATS)} | without a mark | PSNR, median and least |\n|{'---|' * (len(FORMATS) + 4)}"
    )
    for size, n in zip(options.sizes, options.n, strict=True):
        rng = random.Random(size)
        pixels = (render([random_scene(rng) for _ in range(n)]).permute(0, 2, 3, 1) * 255).round().byte().numpy()
        hits, false, noise = dict.fromkeys(FORMATS, 0), 0, []
        for each in pixels:
            image, payload = (
                Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC),
                rng.randbytes(PAYLOAD),
            )
            marked = mark.embed(image, payload)
            false += mark.read(image) is not None
            difference = np.asarray(marked, dtype=float) - np.asarray(image, dtype=float)
            noise.append(10 * np.log10(255**2 / (difference**2).mean()))
            for name in FORMATS:
                hits[name] += mark.read(stored(marked, name)) == payload
        rates = [Rate(count, n) for count in (*hits.values(), false)]
        texts = [
            f"{100 * rate.value:.0f} % ({100 * rate.interval[0]:.0f}–{100 * rate.interval[1]:.0f})" for rate in rates
        ]
        print(f"| {size} | {n} | {' | '.join(texts)} | {np.median(noise):.1f}, {min(noise):.1f} dB |", flush=True)


if __name__ == "__main__":
    main()
