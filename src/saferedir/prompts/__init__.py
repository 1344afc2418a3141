"""Prompt sets, and the reader of prompt files in the formats that papers publish: checked, with the warnings they deserve.

sets.py holds the sets, formats.py says what each format's columns mean, tables.py reads files, reading.py makes
prompt sets, prompt_warnings.py warns. Nothing here prints, copies or quotes a prompt: messages name lines and entries.
"""

from typing import TYPE_CHECKING

from saferedir.utils.lazy import lazy_names

if TYPE_CHECKING:
    from saferedir.prompts.formats import FORMATS, Format, register
    from saferedir.prompts.prompt_warnings import overlap_warnings, subset_warnings, token_warnings
    from saferedir.prompts.reading import read_prompts, text_checksums
    from saferedir.prompts.sets import ConceptPrompts, PromptItem, PromptSet
    from saferedir.prompts.tables import git_blob_sha1

__all__ = [
    "ConceptPrompts",
    "FORMATS",
    "Format",
    "PromptItem",
    "PromptSet",
    "git_blob_sha1",
    "overlap_warnings",
    "read_prompts",
    "register",
    "subset_warnings",
    "text_checksums",
    "token_warnings",
]

if not TYPE_CHECKING:  # else a type checker would take any name
    __getattr__ = lazy_names(
        __name__,
        {
            "FORMATS": "formats",
            "Format": "formats",
            "register": "formats",
            "overlap_warnings": "prompt_warnings",
            "subset_warnings": "prompt_warnings",
            "token_warnings": "prompt_warnings",  # nosec B105
            "read_prompts": "reading",
            "text_checksums": "reading",
            "ConceptPrompts": "sets",
            "PromptItem": "sets",
            "PromptSet": "sets",
            "git_blob_sha1": "tables",
        },
    )
