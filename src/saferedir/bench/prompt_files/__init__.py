"""Prompt files of the user's, in the formats that papers publish: read, checked, and read out with the warnings they deserve.

formats.py says what each format's columns mean, tables.py reads files, reading.py makes prompt sets, cautions.py warns.
Imports prompts, errors and names. Nothing here prints, copies or quotes a prompt: messages name lines and entries.
"""

from saferedir.bench.prompt_files.cautions import overlap_warnings, subset_warnings, token_warnings
from saferedir.bench.prompt_files.formats import FORMATS, Format, register
from saferedir.bench.prompt_files.reading import read_prompts, text_checksums
from saferedir.bench.prompt_files.tables import git_blob_sha1

__all__ = [
    "FORMATS",
    "Format",
    "git_blob_sha1",
    "overlap_warnings",
    "read_prompts",
    "register",
    "subset_warnings",
    "text_checksums",
    "token_warnings",
]
