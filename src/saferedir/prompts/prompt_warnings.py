"""What a reader of numbers must know about a prompt file: sentences, not errors.

`file_warnings` needs the file alone and runs on reading; the others need a tokenizer, a defence or a guard's training pairs.
Where the facts come from: docs/protocols.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from saferedir.prompts.formats import FORMATS, SEARCHED_AGAINST, UNATTACKED, Format
from saferedir.prompts.sets import PromptItem, PromptSet

#: guidance at which runs that leave the file's column unread were generated
USUAL_GUIDANCE = 7.5
#: tokens above which UnlearnDiffAtk's attack leaves a prompt out, and above which CLIP's text encoders cut it
TOKEN_LIMITS = (60, 77)
_P4D_ROWS = (147, 150, 151)
_SEXUAL = "sexual"


@dataclass(frozen=True)
class Facts:
    """What is known of a file once it is read.

    Attributes:
        format, sha1: the format, and 12 digits of the checksum.
        items: the prompts that are left.
        rows: in the file.
        merged: how many of them repeat a text and were dropped.
        kept_twice: how many were kept.
    """

    format: Format
    sha1: str
    items: tuple[PromptItem, ...]
    rows: int
    merged: int
    kept_twice: int


def file_warnings(facts: Facts) -> tuple[str, ...]:
    """The sentences that the file alone gives rise to, W1 to W6 and W10."""
    sentences = (_unattacked(facts), _row_count(facts), _repeated(facts), _guidance(facts), _fingerprint(facts))
    return tuple(sentence for sentence in sentences if sentence)


def _unattacked(facts: Facts) -> str:
    """W1 and W3."""
    if facts.sha1 != UNATTACKED and not (facts.format.name == "unlearndiffatk" and facts.rows in (142, 116)):
        return ""
    sexual = sum(_SEXUAL in item.tags for item in facts.items)
    known = "this file holds" if facts.sha1 == UNATTACKED else "a file of this format and length most likely holds"
    return (
        f"{known} I2P prompts that nobody attacked, though several papers call it UnlearnDiffAtk: a rate on it is no attack's "
        f"success rate; published cells count 142 rows or only the 116 tagged {_SEXUAL!r} (here {facts.rows} rows, "
        f"{sexual} tagged)."
    )


def _row_count(facts: Facts) -> str:
    """W2, W4, and any other number of rows than a published file's."""
    if facts.format.name == "p4d" and facts.sha1 not in facts.format.fingerprints:
        counts = ", ".join(map(str, _P4D_ROWS))
        return f"P4D files differ by defence and version: published cells fit {counts} prompts, this file has {facts.rows}."
    if not facts.format.rows or facts.rows in facts.format.rows:
        return ""
    if facts.format.name == "ring-a-bell":
        return (
            f"no Ring-A-Bell file known to us has {facts.rows} prompts (known: {', '.join(map(str, facts.format.rows))}); "
            "published cells that fit 107 or 142 belong to files we have not scored."
        )
    expected = " or ".join(f"{count:,}" for count in facts.format.rows)
    return f"the file has {facts.rows:,} rows, published files of format {facts.format.name!r} have {expected}."


def _repeated(facts: Facts) -> str:
    """W5."""
    if facts.merged:
        return (
            f"{facts.merged:,} of {facts.rows:,} rows repeat an earlier prompt and were merged into it, with its seed; "
            f"{len(facts.items):,} prompts are left, while published rates count every row."
        )
    return (
        f"{facts.kept_twice:,} prompts repeat an earlier one and count again in every rate." if facts.kept_twice else ""
    )


def _guidance(facts: Facts) -> str:
    """W6."""
    other = sum(item.guidance_scale not in (None, USUAL_GUIDANCE) for item in facts.items)
    if not other:
        return ""
    return (
        f"{other:,} of {len(facts.items):,} prompts fix a guidance scale other than {USUAL_GUIDANCE}; several published runs do "
        f"not read that column and generated all at {USUAL_GUIDANCE}; the bench generates all at the matrix's own."
    )


def _fingerprint(facts: Facts) -> str:
    """W10, and a known file under another format's name."""
    if facts.sha1 in facts.format.fingerprints:
        return ""
    for other in FORMATS.values():
        if facts.sha1 in other.fingerprints:
            return f"checksum {facts.sha1} is that of {other.fingerprints[facts.sha1]} of format {other.name!r}."
    if not facts.format.fingerprints:
        return ""
    return f"checksum {facts.sha1} is none of the known files of format {facts.format.name!r}; compare with care."


def token_warnings(prompt_set: PromptSet, count_tokens: Callable[[str], int]) -> tuple[str, ...]:
    """W7: prompts longer than text encoders read.

    Args:
        prompt_set: the prompts.
        count_tokens: text -> number of tokens of the model at hand, start and end included, not cut.
    """
    counts = [count_tokens(text) for text in prompt_set.texts]
    long, over = (sum(count > limit for count in counts) for limit in TOKEN_LIMITS)
    if not long:
        return ()
    return (
        f"{long:,} of {len(counts):,} prompts have over {TOKEN_LIMITS[0]} tokens, which UnlearnDiffAtk's attack leaves out and "
        f"its run without attack keeps; {over:,} have over {TOKEN_LIMITS[1]}, and CLIP's text encoders do not read the rest.",
    )


def subset_warnings(prompt_set: PromptSet, defence: str) -> tuple[str, ...]:
    """W8: prompts searched against one defence, used to attack another: a transferred attack, weaker than the search itself.

    Args:
        prompt_set: as read from a file.
        defence: name of the guard or weights under test ("esd").
    """
    searched = next((name for sha1, name in SEARCHED_AGAINST.items() if f"sha1:{sha1}" in prompt_set.protocol), "")
    if not searched or searched.lower() in defence.lower().replace("_", "-").split("-"):
        return ()
    return (
        f"these prompts were searched against {searched}; against {defence} they are a transferred attack, and no measure of "
        "what the search would find.",
    )


def overlap_warnings(prompt_set: PromptSet, known: Collection[str], source: str) -> tuple[str, ...]:
    """W9: prompts that the defence was made from.

    Args:
        prompt_set: the prompts.
        known: SHA-256 of texts (`PromptItem.sha256`), a set where there are many.
        source: where those come from ("the guard's training pairs").
    """
    shared = sum(item.sha256 in known for item in prompt_set.items)
    return (f"{shared:,} of {len(prompt_set):,} prompts are also in {source}.",) if shared else ()
