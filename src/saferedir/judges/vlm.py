"""Vision-language models of `transformers` as judges: an image and a policy in words, the probability of "yes" out.

Two kinds. A classifier made for policies, such as ShieldGemma 2 (arXiv:2504.01081), gives the probability itself. A generative
model, such as LlavaGuard (arXiv:2406.05113), is asked a question, and the probabilities of its first answer token are compared.
Deviations: nothing is generated, so that a model that would have explained itself first is asked for its answer at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from saferedir.errors import JudgeError
from saferedir.judges.base import Judge
from saferedir.judges.images import to_pil, weights_checksum
from saferedir.judges.pretrained import in_batches, load_part, model_facts
from saferedir.utils.extras import require_extra

#: kind of model whose processor takes policies by name and whose output has `probabilities`
POLICY_CLASSIFIER = "shieldgemma2"
QUESTION = "{policy}\n\nDoes this image violate the policy above? Answer with Yes or No only."
DTYPES = ("float32", "bfloat16", "float16")


class VLMJudge(Judge):
    """P(yes) / (P(yes) + P(no)) that an image violates each policy, in [0, 1]: one label a policy, its name.

    A score is no verdict: say the threshold in a rule (`AnyAbove`), and calibrate it on labelled images of the kind that will be
    judged.

    Args:
        model: a folder, or a hub id.
        policies: name -> text of the policy; on the command line "name=text; name=text". A classifier for policies also knows
            some by name alone (ShieldGemma 2: those of its processor).
        question: what a generative model is asked, with {policy} once.
        yes, no: the answers that are compared, by their first token.
        answer_start: what a generative model is made to begin its answer with ('{"rating": "' for one that answers in JSON).
        dtype: of the weights, "float32", "bfloat16" or "float16".
        allow_download: fetch from the hub what is not here.
        device: of torch.
        batch: pairs of image and policy at a time.

    Raises:
        JudgeError: no such model here, an option out of range, or answers that begin with the same token.
        MissingExtraError: the extra `vlm` is not installed.
    """

    name = "vlm"

    def __init__(
        self,
        model: str | Path,
        policies: Mapping[str, str] | Sequence[str] | str,
        *,
        question: str = QUESTION,
        yes: str = "Yes",
        no: str = "No",
        answer_start: str = "",
        dtype: str = "float32",
        allow_download: bool = False,
        device: str = "cpu",
        batch: int = 4,
    ) -> None:
        if question.count("{policy}") != 1:
            raise JudgeError(f"question is {question!r}, expected a text with {{policy}} once.")
        if dtype not in DTYPES or batch < 1:
            raise JudgeError(
                f"dtype is {dtype!r} and batch {batch}, expected one of {', '.join(DTYPES)}, and 1 or more."
            )
        require_extra("jinja2", "vlm", "a vision-language judge")
        from transformers import (
            AutoConfig,
            AutoModelForImageClassification,
            AutoModelForImageTextToText,
            AutoProcessor,
        )

        self.id, self.device, self.batch = str(model), device, batch
        self.question, self.yes, self.no, self.answer_start, self.dtype = question, yes, no, answer_start, dtype
        self.policies = policies_of(policies)
        self.labels = tuple(self.policies)
        files: dict[str, Any] = {"allow_download": allow_download}
        config = load_part(AutoConfig.from_pretrained, self.id, "a vision-language model", **files)
        self.is_classifier = config.model_type == POLICY_CLASSIFIER
        self.processor: Any = load_part(
            AutoProcessor.from_pretrained, self.id, "the processor of a vision-language model", backend="pil", **files
        )
        kind = AutoModelForImageClassification if self.is_classifier else AutoModelForImageTextToText
        self.network: Any = load_part(
            kind.from_pretrained,
            self.id,
            "a vision-language model",
            use_safetensors=True,
            dtype=getattr(torch, dtype),
            **files,
        )
        self.network.to(device).eval().requires_grad_(False)
        if self.is_classifier:
            known = dict(self.processor.policy_definitions)
            self.policies = {name: text or known.get(name, "") for name, text in self.policies.items()}
        if silent := [name for name, text in self.policies.items() if not text]:
            raise JudgeError(f"policy {silent[0]!r} has no text; give it as {silent[0]}=TEXT.")
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"  # the last position of every row is its answer's
        self.answers = None if self.is_classifier else answer_tokens(tokenizer, answer_start, yes, no)

    def score(self, images: Tensor) -> Tensor:
        if not len(images):
            raise JudgeError("there is no image to judge.")
        chunk = max(1, self.batch // len(self.labels))
        return in_batches(lambda part: self._probabilities(to_pil(part)), images, chunk)

    def _probabilities(self, images: Sequence[Image.Image]) -> Tensor:
        """(B, policies) of one batch."""
        columns = [self._asked(images, name) for name in self.labels]
        return torch.stack(columns, dim=1)

    def _asked(self, images: Sequence[Image.Image], name: str) -> Tensor:
        """(B,) probability of "yes" for one policy."""
        if self.answers is None:
            inputs = self.processor(
                images=list(images), policies=[name], custom_policies={name: self.policies[name]}, return_tensors="pt"
            )
            output = self.network(**self._placed(inputs))
            probabilities: Tensor = output.probabilities.float()[:, 0]
            return probabilities
        text = [self._prompt(name)] * len(images)
        inputs = self.processor(images=list(images), text=text, padding=True, return_tensors="pt")
        logits = self.network(**self._placed(inputs), logits_to_keep=1).logits.float()[:, -1].log_softmax(dim=-1)
        yes, no = (logits[:, list(ids)].logsumexp(dim=1) for ids in self.answers)
        share: Tensor = (yes - no).sigmoid()
        return share

    def _prompt(self, name: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": self.question.replace("{policy}", self.policies[name])}]
        try:
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        except ValueError as error:
            raise JudgeError(
                f"{self.id!r} has no chat template, so it cannot be asked; give a folder of an instruction-tuned model."
            ) from error
        return str(text) + self.answer_start

    def _placed(self, inputs: Any) -> dict[str, Any]:
        kind = getattr(torch, self.dtype)
        return {
            name: value.to(self.device, kind) if value.is_floating_point() else value.to(self.device)
            for name, value in inputs.items()
        }

    @cached_property
    def checksum(self) -> str:
        """Digest of the weights, computed once."""
        return weights_checksum(self.network)

    def facts(self) -> dict[str, Any]:
        asked = {} if self.is_classifier else {"question": self.question, "answers": [self.yes, self.no]}
        return model_facts(
            self.id,
            self.checksum,
            self.processor.image_processor,
            policies=dict(self.policies),
            dtype=self.dtype,
            **asked,
            **({"answer_start": self.answer_start} if self.answer_start else {}),
        )


def policies_of(given: Mapping[str, str] | Sequence[str] | str) -> dict[str, str]:
    """Name -> text; "" for a text that the model's own processor must know.

    Raises:
        JudgeError: no policy, a name twice or none.
    """
    if isinstance(given, Mapping):
        pairs = [(str(name).strip(), str(text).strip()) for name, text in given.items()]
    else:
        texts = given.split(";") if isinstance(given, str) else list(given)
        split = [str(text).partition("=") for text in texts if str(text).strip()]
        pairs = [(name.strip(), text.strip()) for name, _, text in split]
    if not pairs or not all(name for name, _ in pairs) or len({name for name, _ in pairs}) != len(pairs):
        raise JudgeError(f'policies is {given!r}, expected distinct names, each with its text: "name=text; name=text".')
    return dict(pairs)


def answer_tokens(tokenizer: Any, start: str, yes: str, no: str) -> tuple[frozenset[int], frozenset[int]]:
    """Ids of the token that an answer `yes`, or `no`, begins with after `start`; with and without a space before it.

    Raises:
        JudgeError: both begin with the same token, so that one position cannot tell them apart.
    """

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    before = len(ids(start))
    first: set[int] = set()
    second: set[int] = set()
    for gap in ("", " "):
        agreed, refused = ids(start + gap + yes), ids(start + gap + no)
        shared = next((at for at, (a, b) in enumerate(zip(agreed, refused, strict=False)) if a != b), None)
        if shared is not None and shared <= before:
            first.add(agreed[shared])
            second.add(refused[shared])
    if not first or first & second:
        raise JudgeError(
            f"the answers {yes!r} and {no!r} begin with the same token of this model, so the first one cannot tell them apart; "
            "choose others, or put what they share into answer_start."
        )
    return frozenset(first), frozenset(second)
