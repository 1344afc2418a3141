"""Hook of mkdocs.yml: the README as the site's first page, and what the pages link to outside of `docs/`.

Pages link to files of the repository by their path (`../src/saferedir/attach.py`). The site holds a copy of each such file below
`repository/`, and this hook turns the links, so that `make docs` finds every broken one and no address of a host is needed.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
#: shown as pages of the site, although they lie outside of docs/
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")
FRONT, COPIES = "README.md", "repository/"
_LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s#]+)")


def repository_path(src_uri: str) -> str:
    """Path in the repository of a page of the site."""
    if src_uri == "index.md":
        return FRONT
    return src_uri.removeprefix(COPIES) if src_uri.startswith(COPIES) else f"docs/{src_uri}"


def site_path(path: str) -> str:
    """The inverse of `repository_path`, for any file of the repository; a folder stands for the page in it."""
    if path == FRONT:
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    folder = ROOT / path
    if folder.is_dir():
        inside = "README.md" if (folder / "README.md").is_file() else "__init__.py"
        return f"{COPIES}{path.rstrip('/')}/{inside}"
    return COPIES + path


def target_of(page: str, link: str) -> str | None:
    """Path in the repository of what a page links to; None where there is no such file."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def turned(text: str, src_uri: str) -> str:
    """The text of a page, its links as the site needs them; links to nothing stay, for mkdocs to find."""
    page = repository_path(src_uri)

    def turn(match: re.Match[str]) -> str:
        target = target_of(page, match[2])
        if target is None:
            return match[0]
        return match[1] + os.path.relpath(site_path(target), posixpath.dirname(src_uri) or ".").replace(os.sep, "/")

    return _LINK.sub(turn, text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside of docs/, and a copy of every other file that a page links to."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / FRONT)))
    for path in PAGES:
        files.append(File.generated(config, COPIES + path, abs_src_path=str(ROOT / path)))
    for file in list(files.documentation_pages()):
        page = repository_path(file.src_uri)
        for _, link in _LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            target = target_of(page, link)
            if target is None or target.startswith("docs/"):
                continue
            uri = site_path(target)
            if uri.startswith(COPIES) and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / uri.removeprefix(COPIES))))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page."""
    return turned(markdown, page.file.src_uri)
