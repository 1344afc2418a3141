"""The model card of a guard that is a LoRA: what it forgets, how it was trained, what was measured."""

from __future__ import annotations

from typing import Any


def _table(values: dict[str, object]) -> str:
    rows = [f"| {name.replace('_', ' ')} | {_cell(value)} |" for name, value in values.items()]
    return "| what | value |\n|---|---|\n" + "\n".join(rows)


def _cell(value: object) -> str:
    if not isinstance(value, dict):
        return str(value)
    if {"rate", "n", "low", "high"} <= value.keys():
        return f"{value['rate']:.3f} (95 % interval {value['low']:.3f} to {value['high']:.3f}, n = {value['n']})"
    return ", ".join(f"{name} {entry}" for name, entry in value.items())


def weight_card(config: Any, *, title: str, paper: str, origin: str) -> str:
    """The card as Markdown with the front matter that the Hugging Face hub reads; `config` is a `WeightConfig`."""
    family = (config.backbone or {}).get("architecture", {}).get("family", "any")
    measured = f"\n## Measured\n{_table(config.measured)}\n" if config.measured else ""
    return f"""---
library_name: saferedir
license: apache-2.0
tags: [safety, unlearning, text-to-image, lora]
---
# {title} guard for "{config.concept}"

{origin.format(concept=config.concept)} It acts on every image, whatever the
prompt. With saferedir: `saferedir.attach(pipe, saferedir.Guard.from_pretrained(folder))`. With diffusers alone:
`pipe.load_lora_weights(folder, weight_name="model.safetensors")`.

Method: {paper}. Backbone: {family}. Rank {config.rank} on {", ".join(config.targets)}.

## Training
{_table(config.training)}
{measured}
## Limits
Trained for one backbone. It also changes images that have nothing to do with the concept, a little. It is no defence against
somebody who can take the LoRA off; merge it before giving the weights away (`saferedir bake`, or with diffusers
`pipe.load_lora_weights`, then `pipe.fuse_lora`).
"""
