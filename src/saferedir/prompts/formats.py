"""The formats by name: which columns hold what, how long published files are, and the checksums of known ones.

A format is a row of `FORMATS`; reading.py applies it, docs/protocols.md lists it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from saferedir.errors import PromptFileError
from saferedir.utils.names import unknown_name_message


@dataclass(frozen=True, kw_only=True)
class Format:
    """What the columns of a published file mean. Columns go by name, never by position.

    Attributes:
        name: in matrix files and protocols. "name/choice" picks another text column, or a part of a nested file.
        title: in words.
        text: columns that may hold the prompt; the first one that the file has does. Empty: it must be chosen.
        rows: numbers of rows that published files have.
        seed, guidance, key: columns for `PromptItem.seed`, `.guidance_scale`, `.key`; the first one that the file has.
        key_text: column whose text pairs prompts; its checksum becomes the key.
        tags: columns of comma-separated categories.
        flags: columns that become a tag of their own name where they hold 1.
        fingerprints: first 12 digits of a known file's git-blob SHA-1 -> which file that is.
        under: in a JSON object, the key of the list of prompts.
        is_nested: JSON task -> class -> list of texts; order pairs the lists of two files.
        merges_duplicates: whether a repeated text counts once, instead of being an error.
    """

    name: str
    title: str
    text: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    seed: tuple[str, ...] = ()
    guidance: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    key_text: str = ""
    tags: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    under: str = ""
    is_nested: bool = False
    merges_duplicates: bool = False


FORMATS: dict[str, Format] = {}


def register(entry: Format) -> None:
    """Add one format; a name already taken is an error."""
    if entry.name in FORMATS:
        raise PromptFileError(f"a prompt file format named {entry.name!r} is registered already.")
    FORMATS[entry.name] = entry


def find(name: str) -> tuple[Format, str]:
    """The format, and what was chosen after the slash ("copro/safe_prompt" -> CoPro's, "safe_prompt"); "" for nothing."""
    known, _, choice = name.partition("/")
    if known not in FORMATS:
        raise PromptFileError(unknown_name_message("prompt file format", known, FORMATS))
    entry = FORMATS[known]
    if not entry.text and not entry.is_nested and not choice:
        raise PromptFileError(
            f"format {known!r} does not say which column holds the prompts: write {known + '/COLUMN'!r} with its name."
        )
    return entry, choice


_SEED, _GUIDANCE, _CASE = ("evaluation_seed",), ("evaluation_guidance", "guidance"), ("case_number",)

register(Format(name="plain", title="one prompt a line, or a column of them", text=("prompt", "text", "caption")))
register(
    Format(
        name="i2p-original",
        title="I2P, as its authors publish it",
        text=("prompt",),
        rows=(4703,),
        seed=("sd_seed",),
        guidance=("sd_guidance_scale",),
        tags=("categories",),
        flags=("hard",),
        merges_duplicates=True,
    )
)
register(
    Format(
        name="i2p-esd",
        title="I2P, the copy with evaluation seeds that ESD introduced",
        text=("prompt",),
        rows=(4703,),
        tags=("categories",),
        fingerprints={
            "e03b6d70d820": "the common copy",
            "03ab966dea3f": "P4D's variant",
            "6eee822b9d1d": "UnlearnDiffAtk's variant",
        },
        merges_duplicates=True,
        seed=_SEED,
        guidance=_GUIDANCE,
        key=_CASE,
    )
)
register(
    Format(
        name="unlearndiffatk",
        title="seed prompts of UnlearnDiffAtk, before any attack",
        text=("prompt",),
        rows=(142, 50),
        tags=("categories",),
        fingerprints={
            "87ba24acb6e8": "nudity",
            "b7023ab5b892": "church",
            "b6d3535740aa": "parachute",
            "c21e051e31f1": "Van Gogh",
        },
        seed=_SEED,
        guidance=_GUIDANCE,
        key=_CASE,
    )
)
register(
    Format(
        name="ring-a-bell",
        title="prompts made by Ring-A-Bell",
        text=("sensitive prompt", "prompt"),
        rows=(79, 95, 250, 285, 380),
        seed=_SEED,
        key=_CASE,
        fingerprints={"460dccf2acfb": "the copy of 79"},
    )
)
register(
    Format(
        name="mma",
        title="prompts made by MMA-Diffusion",
        text=("adv_prompt",),
        rows=(1000,),
        key_text="target_prompt",
        fingerprints={"6f6e31a0dc1a": "the released 1 000"},
    )
)
register(
    Format(
        name="p4d",
        title="prompts made by P4D, a file for each defence",
        text=("prompt",),
        fingerprints={"0c296a9c186f": "ESD's"},
        seed=_SEED,
        guidance=_GUIDANCE,
        key=_CASE,
    )
)
register(
    Format(
        name="copro",
        title="CoPro, harmful prompts and their harmless twins",
        text=("unsafe_prompt", "caption"),
        rows=(9996, 994),
        key=("idx",),
        tags=("concept", "category"),
        fingerprints={"71e76cd2addd": "a published subset", "6df5ea77d3c3": "a published subset"},
        under="ID_train_data",
    )
)
register(Format(name="visu", title="ViSU's texts; name the column"))
register(
    Format(
        name="igmu",
        title="IGMU's files of prompts to forget and to retain",
        fingerprints={
            "c18df37fd021": "one of the authors' two files",
            "465950474846": "one of the authors' two files",
            "df4ce02894fc": "one of the copies with SafeRedir",
            "ee735b080b4c": "one of the copies with SafeRedir",
        },
        is_nested=True,
    )
)

#: P4D's files that were searched against one defence: fingerprint -> defence
SEARCHED_AGAINST: Mapping[str, str] = {"0c296a9c186f": "ESD"}
#: the I2P prompts that are often handed out as if UnlearnDiffAtk had changed them
UNATTACKED = "87ba24acb6e8"
