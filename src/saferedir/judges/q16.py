"""Q16: CLIP image features against two learned prompts, appropriate and inappropriate.

Implements Sec. 3 of "Can Machines Help Us Answering Question 16 in Datasheets, and In Turn Reflecting on
Inappropriate Content?" (arXiv:2202.06675): softmax(100 cos(image, prompt)) over both prompts, embeddings of the joint space.
Deviations: prompts are read from safetensors only, for the published file is a pickle, which can run code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from saferedir.errors import JudgeError
from saferedir.judges.clip import CLIPFeatures
from saferedir.judges.images import file_checksum
from saferedir.judges.pretrained import in_batches, model_facts

#: name of the tensor in the file of prompts
PROMPTS = "prompts"
CONVERT = "convert it where you trust it: safetensors.torch.save_file({'prompts': tensor}, 'q16.safetensors')"


class Q16Judge(CLIPFeatures):
    """Probability that an image is inappropriate, in [0, 1]: label "inappropriate".

    Args:
        model: CLIP, a folder or a hub id; the published prompts belong to ViT-L/14.
        prompts: a .safetensors file with one tensor (2, d), d as wide as CLIP's projection.
        inappropriate: which of the two rows stands for inappropriate, 0 or 1; 1 in the published ones.
        scale: factor on the cosine, > 0.
        allow_download: fetch from the hub what is not here; the prompts are never fetched.
        device: of torch.
        batch: images at a time.

    Raises:
        JudgeError: no such model or file here, prompts of another form, or an option out of range.
    """

    name = "q16"
    labels = ("inappropriate",)

    def __init__(
        self,
        model: str | Path,
        prompts: str | Path,
        *,
        inappropriate: int = 1,
        scale: float = 100.0,
        allow_download: bool = False,
        device: str = "cpu",
        batch: int = 32,
    ) -> None:
        if inappropriate not in (0, 1) or not scale > 0 or batch < 1:
            raise JudgeError(
                f"inappropriate is {inappropriate!r}, scale {scale!r} and batch {batch}, expected 0 or 1, above 0, and 1 or more."
            )
        path = Path(prompts).expanduser()
        values = read_prompts(path)
        self.inappropriate, self.scale, self.prompts_checksum = inappropriate, float(scale), file_checksum(path)
        super().__init__(model, allow_download=allow_download, device=device, batch=batch)
        width = int(self.network.config.projection_dim)
        if values.shape[1] != width:
            raise JudgeError(
                f"the prompts in {path} are {values.shape[1]} wide, where the CLIP model {self.id!r} has {width}; they belong to "
                "another CLIP (the published ones to ViT-L/14)."
            )
        self.prompts = torch.nn.functional.normalize(values, dim=1).to(device)

    def score(self, images: Tensor) -> Tensor:
        def probability(chunk: Tensor) -> Tensor:
            both = (self.scale * self.embeddings(chunk) @ self.prompts.T).softmax(dim=1)
            return both[:, self.inappropriate : self.inappropriate + 1]

        return in_batches(probability, images, self.batch)

    def facts(self) -> dict[str, Any]:
        return model_facts(
            self.id,
            self.checksum,
            self.processor,
            prompts=self.prompts_checksum,
            inappropriate=self.inappropriate,
            scale=self.scale,
        )


def read_prompts(path: Path) -> Tensor:
    """(2, d) float32 of a .safetensors file; nothing is ever unpickled.

    Raises:
        JudgeError: another kind of file, more than one tensor, another shape, or numbers that are not finite or all zero.
    """
    if path.suffix != ".safetensors":
        raise JudgeError(
            f"{path.name} is no .safetensors file, and a pickle can run code, so it is not read; {CONVERT}."
        )
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise JudgeError(f"there are no prompts in {path}: {error}; {CONVERT}.") from error
    values = tensors.get(PROMPTS) if PROMPTS in tensors or len(tensors) != 1 else next(iter(tensors.values()))
    if values is None or values.ndim != 2 or values.shape[0] != 2 or not values.is_floating_point():
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()) or "nothing"
        raise JudgeError(
            f"{path} holds {shapes}; expected one tensor {PROMPTS!r} of shape (2, width) in floating point."
        )
    values = values.float()
    if not bool(values.isfinite().all()) or not bool((values.norm(dim=1) > 0).all()):
        raise JudgeError(f"the prompts in {path} are not finite, or one of them is zero; fetch the file again.")
    return values
