"""The text side of `pictoworld-flux`: a T5 encoder with a unigram tokenizer, a CLIP text encoder with byte-level BPE.

Both are trained before the transformer and then frozen, as FLUX's are. Their training signal is the content of the described
image by place: layout, background, what stands in the left or upper place and in the other one, the poster. T5 must say it at
its end token and at every padding token (the transformer attends to all of them), CLIP in its pooled output.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from saferedir.pictoworld.scene import BACKGROUNDS, COLOURS, STYLES
from saferedir.pictoworld.world2.captions import Prompt, corpus_prompt
from saferedir.pictoworld.world2.judge import KINDS, LAYOUTS
from saferedir.pictoworld.world2.posters import POSTERS, Poster
from saferedir.utils.progress import Progress
from tools.pictoworld.training.loop import LoopConfig, fit
from tools.pictoworld.training.text_encoder import build_text_encoder

SEQUENCE_LENGTH = 32
WIDTH = 128
VOCABULARY = 1500
START, END = "<|startoftext|>", "<|endoftext|>"
OPEN = "open"  # the caption does not say, or there is nothing to say

_OF_PLACE: Mapping[str, tuple[str, ...]] = {
    "kind": (*KINDS, OPEN),
    "colour": (*COLOURS, OPEN),
    "style": (*STYLES, OPEN),
}
#: what the encoders must say -> its values; place 0 is the left or upper one, or the only one
TARGETS: Mapping[str, tuple[str, ...]] = {
    "layout": LAYOUTS,
    "background": (*BACKGROUNDS, OPEN),
    "poster": (*POSTERS, OPEN),
    "variant": tuple(str(i) for i in range(9)),
    **{f"{place}_{name}": values for place in ("first", "second") for name, values in _OF_PLACE.items()},
}


def target_values(prompt: Prompt) -> dict[str, str]:
    """The value of every target for a caption."""
    values = dict.fromkeys(TARGETS, OPEN) | {"variant": "0"}
    if isinstance(prompt.content, Poster):
        poster = prompt.content
        return values | {"layout": "poster", "poster": poster.title, "variant": str(poster.variant)}
    scene = prompt.scene
    order = (0, 1) if scene.relation in ("", "left of", "above") else (1, 0)
    values["layout"] = "one" if not scene.is_pair else "beside" if scene.relation in ("left of", "right of") else "over"
    if "background" in prompt.mentioned:
        values["background"] = scene.background
    for place, index in zip(("first", "second"), order[: len(scene.items)] if scene.is_pair else (0,), strict=False):
        item = scene.items[index]
        if f"{index}.character" in prompt.mentioned:
            values[f"{place}_kind"] = item.character
        for name, target in (("shape", "kind"), ("colour", "colour"), ("style", "style")):
            if f"{index}.{name}" in prompt.mentioned:
                values[f"{place}_{target}"] = getattr(item, name)
    return values


def labels_of(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Class indices (B,) per target."""
    values = [target_values(prompt) for prompt in prompts]
    return {name: torch.tensor([classes.index(v[name]) for v in values]) for name, classes in TARGETS.items()}


def corpus_batch(batch: int, seed: int) -> list[Prompt]:
    """`batch` random training captions."""
    rng = random.Random(f"captions-2/{seed}")
    return [corpus_prompt(rng) for _ in range(batch)]


def _corpus_texts(captions: int, seed: int) -> list[str]:
    return [prompt.text for prompt in corpus_batch(captions, seed)]


def train_clip_tokenizer(seed: int = 0, captions: int = 20_000) -> CLIPTokenizer:
    """A `CLIPTokenizer` whose merges come from random captions; every byte is in the vocabulary, so none is unknown."""
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
    backend.train_from_iterator(_corpus_texts(captions, seed), trainer)
    learned = json.loads(backend.to_str())["model"]["merges"]
    base = alphabet + [letter + "</w>" for letter in alphabet]
    merges = [tuple(pair) for pair in learned][: VOCABULARY - len(base) - 2]
    words = dict.fromkeys(base + ["".join(pair) for pair in merges])
    vocabulary = {word: index for index, word in enumerate([*words, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=SEQUENCE_LENGTH)


def train_t5_tokenizer(seed: int = 0, captions: int = 20_000) -> PreTrainedTokenizerFast:
    """A unigram tokenizer with T5's special tokens, in lower case: the corpus's words, and letters and pairs of letters.

    A piece's score is the logarithm of its share; letters and pairs have low ones, so that a word of the vocabulary is one
    token and a misspelt one few.
    """
    counts = Counter(
        piece for text in _corpus_texts(captions, seed) for piece in re.findall(r"[\w'-]+|[^\w\s]", text.lower())
    )
    total = sum(counts.values())
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pairs = Counter(
        word[i : i + 2] for word, number in counts.items() for i in range(len(word) - 1) for _ in range(min(number, 20))
    )
    pieces = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -6.0}
    pieces |= dict.fromkeys(letters, -12.0) | {pair: -14.0 for pair, _ in pairs.most_common(250)}
    for word, number in counts.most_common():
        if len(pieces) == VOCABULARY:
            break
        pieces[f"▁{word}"] = math.log(number / total)
    backend = Tokenizer(models.Unigram(list(pieces.items()), unk_id=2, byte_fallback=False))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"[\w'-]+"), behavior="isolated"),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False),
        ]
    )
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=SEQUENCE_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def tokenize(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Token ids (B, 32) as `FluxPipeline` makes them: padded and cut to the window."""
    ids: Tensor = tokenizer(
        list(texts), padding="max_length", max_length=SEQUENCE_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def build_t5(tokenizer: Any) -> T5EncoderModel:
    """An untrained three-layer, 128-wide T5 encoder, four of whose eight heads know the order of words from the start.

    From T5's own start it learned which words occur and stayed there for 7,000 steps, an item's kind right in .76 of captions:
    what stands where is said by order, and an attention bias moves by no more than the learning rate a step.
    So one head begins on the token before, one on the token after, one on all tokens after and one on all before; the other four
    begin as usual.
    """
    heads = 8
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=WIDTH // heads,
            num_heads=heads,
            d_ff=2 * WIDTH,
            num_layers=3,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=SEQUENCE_LENGTH,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    attention = t5.encoder.block[0].layer[0].SelfAttention  # the other layers share its bias
    distances = torch.arange(1 - SEQUENCE_LENGTH, SEQUENCE_LENGTH)
    buckets = attention._relative_position_bucket(
        distances, True, t5.config.relative_attention_num_buckets, t5.config.relative_attention_max_distance
    )
    with torch.no_grad():
        for bucket in buckets.unique().tolist():
            d = float(distances[buckets == bucket].double().mean())
            before, after = d < 0, d > 0
            attention.relative_attention_bias.weight[bucket, :4] = torch.tensor(
                [
                    -1.5 * abs(d + 1) if d <= 0 else -8.0,
                    -1.5 * abs(d - 1) if d >= 0 else -8.0,
                    0.0 if after else -6.0,
                    0.0 if before else -6.0,
                ]
            )
    return t5


def build_clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained two-layer, 128-wide `CLIPTextModel`."""
    return build_text_encoder(tokenizer, WIDTH, expansion=3)


class ContentReader(nn.Module):
    """Both encoders, each with one linear classifier a target."""

    def __init__(self, t5: T5EncoderModel, clip: CLIPTextModel) -> None:
        super().__init__()
        self.t5, self.clip = t5, clip
        self.t5_heads = nn.ModuleDict({name: nn.Linear(WIDTH, len(values)) for name, values in TARGETS.items()})
        self.clip_heads = nn.ModuleDict({name: nn.Linear(WIDTH, len(values)) for name, values in TARGETS.items()})

    def forward(self, t5_ids: Tensor, clip_ids: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Ids (B, L) -> T5's logits (B, L, classes) and CLIP's (B, classes) per target."""
        hidden = self.t5(t5_ids)[0]
        pooled = self.clip(clip_ids).pooler_output
        return (
            {name: head(hidden) for name, head in self.t5_heads.items()},
            {name: head(pooled) for name, head in self.clip_heads.items()},
        )


def train_text_encoders(
    t5_tokenizer: Any,
    clip_tokenizer: CLIPTokenizer,
    checkpoint: Path,
    *,
    steps: int,
    progress: Progress,
    device: torch.device,
    batch: int = 64,
    seed: int = 0,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[T5EncoderModel, CLIPTextModel, dict[str, dict[str, float]]]:
    """Train both on content prediction; returns the frozen encoders and each one's accuracy on fresh captions."""
    torch.manual_seed(seed)
    reader = ContentReader(build_t5(t5_tokenizer), build_clip(clip_tokenizer)).to(device)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        prompts = corpus_batch(batch, seed * 9_000_011 + step)
        texts = [prompt.text for prompt in prompts]
        ids = tokenize(t5_tokenizer, texts).to(device)
        labels = {name: value.to(device) for name, value in labels_of(prompts).items()}
        t5_logits, clip_logits = reader(ids, tokenize(clip_tokenizer, texts).to(device))
        after = (ids == t5_tokenizer.eos_token_id) | (ids == t5_tokenizer.pad_token_id)
        weight = (after / after.sum(1, keepdim=True).clamp(min=1))[after] / batch
        rows = after.nonzero()[:, 0]
        total = torch.zeros((), device=device)
        for name, target in labels.items():
            at_ends = cross_entropy(t5_logits[name].float()[after], target[rows], reduction="none")
            total = total + (at_ends * weight).sum() + cross_entropy(clip_logits[name].float(), target)
        return total

    config = LoopConfig(steps=steps, learning_rate=2e-3, warmup=200, seed=seed, ema=0.998, save_every=250, bf16=False)
    fit(reader, loss_fn, config, checkpoint, progress=progress, label="text encoders", log=log)
    return (
        reader.t5.requires_grad_(False),
        reader.clip.requires_grad_(False),
        accuracies(reader, t5_tokenizer, clip_tokenizer, device),
    )


@torch.no_grad()
def accuracies(
    reader: ContentReader, t5_tokenizer: Any, clip_tokenizer: CLIPTokenizer, device: torch.device, captions: int = 1000
) -> dict[str, dict[str, float]]:
    """Encoder -> target -> accuracy on fresh captions; T5's at its last token."""
    prompts = corpus_batch(captions, seed=-1)
    texts = [prompt.text for prompt in prompts]
    labels = labels_of(prompts)
    t5_logits, clip_logits = reader(
        tokenize(t5_tokenizer, texts).to(device), tokenize(clip_tokenizer, texts).to(device)
    )
    last = {"t5": {name: logits[:, -1] for name, logits in t5_logits.items()}, "clip": clip_logits}
    return {
        encoder: {
            name: (logits.argmax(-1).cpu() == labels[name]).float().mean().item() for name, logits in of_encoder.items()
        }
        for encoder, of_encoder in last.items()
    }
