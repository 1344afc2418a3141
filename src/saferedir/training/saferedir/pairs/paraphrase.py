"""Says prompts in other words with a local text model of transformers; what to keep of that, build.py decides.

Both kinds of model work: text-to-text (T5, BART) and causal (GPT, Llama, Qwen).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from saferedir.errors import GuardConfigError
from saferedir.utils.places import hub_id, missing_folder

Paraphraser = Callable[[Sequence[str]], list[str]]
REQUEST = "Say this image caption in other words, in one line, and name the same things: {text}"
MAX_NEW_TOKENS = 60


def load_paraphraser(name: str, *, device: Any = "cpu", batch: int = 16, seed: int = 0) -> Paraphraser:
    """A function from prompts to as many paraphrases ("" where the model said nothing), the same for the same `seed`.

    Args:
        name: a transformers folder or hub id; its weights must be safetensors and its code that of transformers.

    Raises:
        GuardConfigError: the model or its tokenizer cannot be loaded.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    folder = Path(name).expanduser()
    if not folder.is_dir() and "/" in name and hub_id(name) is None:
        raise GuardConfigError(
            f"no text model could be loaded from {name!r}: {missing_folder(name, 'config.json')}; give a folder or hub id of a "
            "text-to-text or causal model of transformers."
        )
    source = str(folder) if folder.is_dir() else hub_id(name) or name
    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = kind.from_pretrained(source, use_safetensors=True).to(device).eval()
    except Exception as error:  # whatever a foreign folder makes transformers raise
        raise GuardConfigError(
            f"no text model could be loaded from {name!r} ({type(error).__name__}: {str(error).strip().splitlines()[0][:160]}); "
            "give a folder or hub id of a text-to-text or causal model of transformers."
        ) from error
    tokenizer.padding_side = "right" if config.is_encoder_decoder else "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def paraphrase(prompts: Sequence[str]) -> list[str]:
        paraphrases: list[str] = []
        for start in range(0, len(prompts), batch):
            paraphrases += generate(model, tokenizer, prompts[start : start + batch], seed=seed + start)
        return paraphrases

    return paraphrase


def generate(model: Any, tokenizer: Any, prompts: Sequence[str], *, seed: int) -> list[str]:
    """One sampled paraphrase for each prompt of a batch: the first line the model says, without quotation marks."""
    import torch

    causal = not model.config.is_encoder_decoder
    requests = [_request(tokenizer, prompt, causal) for prompt in prompts]
    encoded = tokenizer(requests, return_tensors="pt", padding=True).to(model.device)
    settings = {"do_sample": True, "top_p": 0.9, "temperature": 0.8, "max_new_tokens": MAX_NEW_TOKENS}
    accepted = {k: v for k, v in encoded.items() if k in ("input_ids", "attention_mask")}
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        tokens = model.generate(**accepted, **settings, pad_token_id=tokenizer.pad_token_id)
    if causal:
        tokens = tokens[:, accepted["input_ids"].shape[1] :]
    return [_first_line(text) for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def _request(tokenizer: Any, prompt: str, causal: bool) -> str:
    text = REQUEST.format(text=prompt)
    if not causal:
        return text
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": text}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return f"{text}\nIn other words:"


def _first_line(text: str) -> str:
    lines = [line.strip(" \t\"'“”*") for line in text.splitlines()]
    return " ".join(next((line for line in lines if line), "").split())
