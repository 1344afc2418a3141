"""JudgeNetwork: the small CNN behind the judges of both worlds; they differ in heads, and in what they make of the logits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from saferedir.utils.files import save_tensors


class JudgeNetwork(nn.Module):
    """Convolutional network, (B, 3, 64, 64) in [0, 1] to one logit row per head and a broken logit.

    Args:
        heads: head -> how many classes it tells apart.
        width: of the first layer.
        hidden: size of the description before the heads.
    """

    def __init__(self, heads: Mapping[str, int], width: int, hidden: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out in (width, 2 * width, 3 * width, 4 * width):
            layers += [
                nn.Conv2d(channels, out, 3, stride=2, padding=1),
                nn.GroupNorm(8, out),
                nn.SiLU(),
                nn.Conv2d(out, out, 3, padding=1),
                nn.GroupNorm(8, out),
                nn.SiLU(),
            ]
            channels = out
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 16, hidden), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, classes) for name, classes in heads.items()})
        self.broken = nn.Linear(hidden, 1)

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Logits per head (B, classes) and the broken logit (B,)."""
        hidden = self.trunk(images * 2 - 1)
        return {name: head(hidden) for name, head in self.heads.items()}, self.broken(hidden)[:, 0]

    def features(self, images: Tensor) -> Tensor:
        """(B, hidden) description before the heads, for distances between images."""
        out: Tensor = self.trunk(images * 2 - 1)
        return out

    @abstractmethod
    def judge(self, images: Any, batch: int = 128) -> Any:
        """Judge images given as PIL images, an array or a tensor."""

    def verifier(self, values: Mapping[str, str]) -> Callable[[Sequence[Image.Image]], list[bool]]:
        """A function for `verify` of `saferedir.protect`: which images are labelled with all of `values`, broken or not."""

        def is_labelled(images: Sequence[Image.Image]) -> list[bool]:
            flags: list[bool] = self.judge(images).is_labelled(values).tolist()
            return flags

        return is_labelled

    def save(self, path: Path) -> None:
        """Write the weights as float16 safetensors."""
        save_tensors({name: tensor.half().contiguous() for name, tensor in self.state_dict().items()}, path)

    def with_weights(self, path: Path) -> Self:
        """This network with the weights of a file, for judging alone."""
        self.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
        return self.eval().requires_grad_(False)
