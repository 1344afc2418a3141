"""The tokenizer and the text encoder: byte-level BPE, and a two-layer CLIP text model that understands the captions.

As in Stable Diffusion the encoder is trained before the denoiser and then frozen; its training signal is the attributes
of the described scene, read from the end-of-text token and from every padding token after it (the denoiser attends to
all of them).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from saferedir.pictoworld.captions import Prompt, corpus_prompt
from saferedir.pictoworld.scene import VALUES
from saferedir.utils.progress import Progress
from tools.pictoworld.training.loop import LoopConfig, fit

SEQUENCE_LENGTH = 32
WIDTH = 96
VOCABULARY = 1000
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(seed: int = 0, captions: int = 20_000) -> CLIPTokenizer:
    """A `CLIPTokenizer` whose merges come from random captions; every byte is in the vocabulary, so none is unknown."""
    rng = random.Random(seed)
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Whitespace(),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
        min_frequency=2,
    )
    backend.train_from_iterator((corpus_prompt(rng).text for _ in range(captions)), trainer)
    learned = json.loads(backend.to_str())["model"]["merges"]
    base = alphabet + [letter + "</w>" for letter in alphabet]
    merges = [tuple(pair) for pair in learned][: VOCABULARY - len(base) - 2]
    words = dict.fromkeys(base + ["".join(pair) for pair in merges])
    vocabulary = {word: index for index, word in enumerate([*words, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=SEQUENCE_LENGTH)


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids (B, 32) as the diffusers pipeline makes them: padded with the end token, cut to the window."""
    ids: Tensor = tokenizer(
        list(texts), padding="max_length", max_length=SEQUENCE_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def build_text_encoder(tokenizer: CLIPTokenizer, width: int = WIDTH, expansion: int = 4) -> CLIPTextModel:
    """An untrained two-layer `CLIPTextModel` whose feed-forward layers are `expansion` times as wide."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=expansion * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=SEQUENCE_LENGTH,
            hidden_act="gelu",
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class AttributeReader(nn.Module):
    """The text encoder with one linear classifier an attribute, each with one class more for "not said"."""

    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, len(values) + 1) for name, values in VALUES.items()})

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        """ids (B, L) -> logits per attribute, (B, L, classes)."""
        hidden = self.encoder(ids).last_hidden_state
        return {name: head(hidden) for name, head in self.heads.items()}


def attribute_labels(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Class indices (B,) per attribute; the last class means that the caption leaves the attribute open."""
    return {
        name: torch.tensor([p.scene.index(name) if name in p.mentioned else len(values) for p in prompts])
        for name, values in VALUES.items()
    }


def corpus_batch(count: int, seed: int) -> list[Prompt]:
    """`count` random training captions."""
    rng = random.Random(seed)
    return [corpus_prompt(rng) for _ in range(count)]


def train_text_encoder(
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    *,
    steps: int,
    progress: Progress,
    device: torch.device,
    batch: int,
    seed: int = 0,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[CLIPTextModel, dict[str, float]]:
    """Train on attribute prediction; returns the frozen encoder and its accuracy on fresh captions."""
    torch.manual_seed(seed)
    reader = AttributeReader(build_text_encoder(tokenizer)).to(device)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        prompts = corpus_batch(batch, seed * 9_000_011 + step)
        ids = tokenize(tokenizer, [p.text for p in prompts]).to(device)
        after = ids == tokenizer.eos_token_id  # the end token and the padding behind it
        labels = attribute_labels(prompts)
        total = torch.zeros((), device=device)
        for name, logits in reader(ids).items():
            target = labels[name].to(device)[:, None].expand(ids.shape)
            loss = nn.functional.cross_entropy(logits.float().transpose(1, 2), target, reduction="none")
            total = total + ((loss * after).sum(1) / after.sum(1)).mean()
        return total

    config = LoopConfig(steps=steps, learning_rate=2e-3, warmup=200, seed=seed, ema=0.998, save_every=250, bf16=False)
    fit(reader, loss_fn, config, checkpoint, progress=progress, label="text encoder", log=log)
    prompts = corpus_batch(2000, seed=-1)
    with torch.no_grad():
        logits = reader(tokenize(tokenizer, [p.text for p in prompts]).to(device))
    labels = attribute_labels(prompts)
    accuracy = {
        name: (value[:, -1].argmax(-1).cpu() == labels[name]).float().mean().item() for name, value in logits.items()
    }
    return reader.encoder.requires_grad_(False), accuracy
