"""A CLIP of width 16 on small images, from random weights, saved as transformers does."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.conftest import make_tokenizer
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel


def save_clip(folder: Path, seed: int = 0, side: int = 32) -> Path:
    """Weights come from the seed; `side` is what images are resized to before 32 x 32 pixels are cut out."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    shared = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config={**shared, **ends, "vocab_size": 64},
        vision_config={**shared, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder
