"""What each guard costs a step by count: rows of the denoiser, FLOPs, bytes; prints tables for docs/performance.md.

Run: python benchmarks/cost_model.py
Nothing is timed: networks stand on torch's "meta" device and FLOPs are counted (`benchmarks/flops.py`). A guard adds rows to the
denoiser's batch, has a network or references of its own, or changes weights. Bytes are what a step reads beside the denoiser:
weights in float32, references in float16, latents in float32. Kernels a step are counted by `benchmarks/syncs.py --table`.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from benchmarks.flops import BACKBONES, Backbone, count_flops, meta, part_cost, redirector_cost, redirector_of

from saferedir.guards.saferedir.network import Redirector, RedirectorConfig

NAMES = ("Stable Diffusion 1.5", "SDXL base 1.0", "SD3 medium", "FLUX.1-dev")
REFERENCES = 515  # of a negation set, as the Safe Denoiser's paper has for nudity
#: guard -> rows of the denoiser that it adds for each image, with guidance and without; None where it needs guidance
ROWS = {
    "negative_prompt": (0, None),
    "sld": (1, None),
    "nag": (1, 1),
    "dual_latent_r1": (1, 1),
    "dual_latent_r2": (2, 1),
}


def many(backbone: Backbone, count: int) -> Redirector:
    """A network of that many concepts at the sizes of a backbone, on the meta device."""
    names = tuple(f"concept {i}" for i in range(count))
    sizes: dict[str, Any] = {
        "prompt_dim": backbone.prompt_dim, "latent_channels": backbone.latent[0], "pooled_dim": backbone.pooled_dim,
    }  # fmt: skip
    with torch.device("meta"):
        return Redirector(RedirectorConfig(**sizes, rank=16, concepts=names, row_heads=True, has_joint=False)).eval()


@torch.no_grad()
def image_verdict(network: Redirector, backbone: Backbone) -> tuple[int, int]:
    """(FLOPs, bytes read) of one image verdict."""
    flops = count_flops(lambda: network.image_logits(meta("x0", (1, *backbone.latent)), meta("t", (1,))))
    parts = ("latent_encoder.", "t_encoder.", "image_trunk.")
    sizes = {name: value.numel() for name, value in network.named_parameters()}
    weights = sum(size for name, size in sizes.items() if name.startswith(parts) or ".image_score." in name)
    return flops, 4 * (weights + latent_size(backbone))


def latent_size(backbone: Backbone) -> int:
    channels, height, width = backbone.latent
    return channels * height * width


def cells_of(backbone: Backbone) -> dict[str, str]:
    """Guard -> what it adds to a step of one model."""
    _, row = part_cost(backbone.denoiser)
    step = backbone.rows * row
    one = redirector_cost(backbone)
    network, latents = redirector_of(backbone), latent_size(backbone)
    cells = {"the bare step": f"{backbone.rows} rows, {step / 1e9:,.0f} GFLOP"}

    def put(name: str, flops: float, size: float) -> None:
        cells[name] = f"{flops / 1e9:.2f} GFLOP, {size / 1e6:,.1f} MB: {1 + flops / step:.5f}"

    put("saferedir, image verdict", *image_verdict(network, backbone))
    for count in (100, 1000):
        put(f"saferedir_many of {count:,}, image verdicts", *image_verdict(many(backbone, count), backbone))
    joint = ("joint_trunk.", "cross_attention.")
    read = sum(v.numel() for n, v in network.named_parameters() if not n.startswith(joint) and ".joint_score." not in n)
    put("saferedir, once a run: prompt verdict, redirection", one["prompt"] + one["redirection"], 4 * read)
    for name, added in ROWS.items():
        rows = added[0] if backbone.rows == 2 else added[1]
        cells[name] = "–" if rows is None else f"{rows} rows: {1 + rows * row / step:.1f}" if rows else "nothing"
    distances = 2 * REFERENCES * latents  # one product with all references, and for the mean another
    put(f"spell, {REFERENCES} references", distances, 2 * REFERENCES * latents)
    put(f"safe_denoiser, {REFERENCES} references", 2 * distances, 2 * REFERENCES * latents)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(NAMES), choices=[each.name for each in BACKBONES])
    arguments = parser.parse_args()
    columns = {each.name: cells_of(each) for each in BACKBONES if each.name in arguments.models}
    print(f"| a step of one image | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|")
    for name in next(iter(columns.values())):
        print(f"| {name} | {' | '.join(cells[name] for cells in columns.values())} |")


if __name__ == "__main__":
    main()
