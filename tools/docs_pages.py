"""MkDocs' hook: the site is the README and what is found from there, pages and the files that they link to.

Documents stand where their readers look, also outside of docs/, and link to one another and to configs as a repository
does. So each file is in the site by its path in the repository, and every link is MkDocs' to check: `make docs`.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)")
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """In place of docs/ alone, all that is found from the README."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    return Files(theme + [File.generated(config, name, abs_src_path=str(ROOT / name)) for name in sorted(_found())])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A link to a folder is one to its README."""
    folder = (ROOT / page.file.src_uri).parent
    return LINK.sub(lambda link: _target(folder, link[1])[1], markdown)


def _found() -> set[str]:
    found, new = set(), {"README.md"}
    while new:
        name = new.pop()
        found.add(name)
        page = ROOT / name
        if page.suffix == ".md":
            links = LINK.findall(CODE.sub("", page.read_text()))
            new |= {_target(page.parent, link)[0] for link in links} - found
    return found


def _target(folder: Path, link: str) -> tuple[str, str]:
    """The file that a link leads to, from the repository's root, and the link that says so."""
    path = (folder / link).resolve()
    if path.is_dir():
        path, link = path / "README.md", f"{link.rstrip('/')}/README.md"
    return path.relative_to(ROOT).as_posix(), link
