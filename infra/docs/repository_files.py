"""Lets pages link to files of the repository that are no pages, as they can on GitHub.

MkDocs sees docs/ alone. This hook follows the links out of it, and from there on, and puts what they lead to into the
site: docs/NAME as NAME, any other file as repository/NAME; Markdown as a page, the rest as a page that shows its text.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
_ENTRIES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
_CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds every file that pages lead to. ValueError if one does not exist."""
    waiting = [ROOT / name for name in _ENTRIES]
    for file in files.documentation_pages():
        waiting += _targets(ROOT / "docs" / file.src_uri)
    while waiting:
        path = waiting.pop()
        uri = _place(path)
        if path.is_relative_to(ROOT / "docs") or files.get_file_from_path(uri) is not None:
            continue
        files.append(File.generated(config, uri, content=_content(path), inclusion=InclusionLevel.NOT_IN_NAV))
        if path.suffix == ".md":
            waiting += _targets(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page's text, its links to files turned into links to where these are in the site."""
    here = page.file.src_uri
    source = ROOT / here.removeprefix("repository/") if here.startswith("repository/") else ROOT / "docs" / here

    def relocated(link: re.Match[str]) -> str:
        if "://" in link["target"] or link["target"].startswith("mailto:"):
            return link[0]
        place = posixpath.relpath(_place(_resolve(source, link["target"])), posixpath.dirname(here) or ".")
        return f"{link[1]}{place}{link['anchor'] or ''}{link[4]}"

    pieces, start = [], 0
    for code in _CODE.finditer(markdown):  # in which nothing is a link
        pieces += [_LINK.sub(relocated, markdown[start : code.start()]), code[0]]
        start = code.end()
    return "".join([*pieces, _LINK.sub(relocated, markdown[start:])])


def _targets(page: Path) -> Iterator[Path]:
    for link in _LINK.finditer(_CODE.sub("", page.read_text())):
        if "://" not in link["target"] and not link["target"].startswith("mailto:"):
            yield _resolve(page, link["target"])


def _resolve(page: Path, target: str) -> Path:
    path = (page.parent / target).resolve()
    if not path.exists() or not path.is_relative_to(ROOT):
        raise ValueError(f"{page.relative_to(ROOT)}: the link {target!r} leads to no file of the repository")
    return path / "README.md" if path.is_dir() else path


def _place(path: Path) -> str:
    """Where a file of the repository is in the site, as a path from docs/."""
    name = path.relative_to(ROOT).as_posix()
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return f"repository/{name}" if path.suffix == ".md" else f"repository/{name}.md"


def _content(path: Path) -> str:
    text = path.read_text()
    if path.suffix == ".md":
        return text
    return f"# {path.relative_to(ROOT).as_posix()}\n\n```{path.suffix.removeprefix('.')}\n{text}\n```\n"
