"""Is a name a place on this disk, or a repository of the Hugging Face hub? A path is never looked up on the hub.

Used wherever a name may be either: guards, pipelines, tokenizers, judges' models.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

HUB = "hf://"
#: names of folders that results and models are kept in: "runs/star" is one of ours wherever the command is started
LOCAL_FOLDERS = frozenset(
    "runs run guards guard models model checkpoints checkpoint ckpts ckpt loras lora outputs output out results weights data "
    "experiments artifacts trained saved bench images pictures build tmp mnt home work examples tests".split()
)
#: names of worlds in this package: "world2/star-2" is a guard that is packaged, or not there
WORLDS = frozenset(("pictoworld", "world2"))
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def hub_id(name: str | Path) -> str | None:
    """The repository "owner/name" that a name stands for; None where it is a path.

    "hf://owner/name" is always the hub's. Else a path is what is absolute, starts with "." or "~", has not exactly one slash
    inside, or whose first part is a folder here or one of `LOCAL_FOLDERS`.
    """
    text = str(name)
    if text.startswith(HUB):
        repository = text.removeprefix(HUB)
        return repository if _HUB_ID.fullmatch(repository) else None
    owner = text.partition("/")[0]
    if (
        not _HUB_ID.fullmatch(text)
        or text.startswith(".")
        or owner.lower() in LOCAL_FOLDERS | WORLDS
        or Path(owner).is_dir()
    ):
        return None
    return text


def missing_folder(name: str | Path, marker: str, known: Iterable[str] = ()) -> str:
    """'there is no folder /x/runs/mooon; did you mean runs/moon?', from its neighbours that hold `marker` and `known` names."""
    path = Path(str(name).removeprefix(HUB)).expanduser()
    neighbours: dict[str, str] = {}
    if path.parent.is_dir():
        for neighbour in sorted(path.parent.iterdir()):
            if (neighbour / marker).is_file():
                neighbours[neighbour.name] = str(neighbour)
    near = [neighbours[match] for match in difflib.get_close_matches(path.name, neighbours, n=2)]
    near += difflib.get_close_matches(str(name), list(known), n=1)
    what = f"{path.absolute()} holds no {marker}" if path.exists() else f"there is no folder {path.absolute()}"
    return what + (f"; did you mean {' or '.join(near)}?" if near else "")
