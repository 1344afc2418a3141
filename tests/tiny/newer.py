"""The tiny pipelines of the newer families by name; each is in the file of its relatives."""

from __future__ import annotations

from tests.tiny.flux_like import (
    make_chroma,
    make_flux2,
    make_ovis,
    make_z_image,
    make_z_image_controlnet,
)
from tests.tiny.hunyuan import (
    make_hidream,
    make_hunyuan_dit,
    make_hunyuan_image,
)
from tests.tiny.kandinsky import (
    make_kandinsky3,
    make_kandinsky5,
)
from tests.tiny.more_dits import (
    make_cogview3,
    make_cogview4,
    make_ltx,
    make_prx,
)
from tests.tiny.qwen import (
    make_krea2,
    make_nucleus_image,
    make_qwen_image,
    make_qwen_image_controlnet,
    make_qwen_image_edit,
)

__all__ = [
    "make_chroma",
    "make_cogview3",
    "make_cogview4",
    "make_flux2",
    "make_hidream",
    "make_hunyuan_dit",
    "make_hunyuan_image",
    "make_kandinsky3",
    "make_kandinsky5",
    "make_krea2",
    "make_ltx",
    "make_nucleus_image",
    "make_ovis",
    "make_prx",
    "make_qwen_image",
    "make_qwen_image_controlnet",
    "make_qwen_image_edit",
    "make_z_image",
    "make_z_image_controlnet",
]
