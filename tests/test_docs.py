"""Links of the documents: what they point to is there, and every page is found from the README."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import PAGES, ROOT, prose

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[tuple[Path, str]]:
    """The files, and the anchors in them, that a page links to."""
    found = []
    for link in LINK.findall(prose(page)):
        if not link.startswith(("http:", "https:", "mailto:")):
            path, _, anchor = link.partition("#")
            found.append(((page.parent / path).resolve() if path else page, anchor))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_to_something(page):
    for path, anchor in links(page):
        assert path.exists() and path.is_relative_to(ROOT), path
        assert not anchor or anchor in anchors(path), f"{path}#{anchor}"


def test_every_page_is_found_from_the_readme():
    found, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        found.add(page)
        targets = {path / "README.md" if path.is_dir() else path for path, _ in links(page)}
        new |= {path for path in targets if path.suffix == ".md" and path.is_file()} - found
    assert [page for page in PAGES if page not in found] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_readme_says_of_the_kernels_what_their_report_says():
    rows = re.findall(
        r"^\| ([^|]+) \| ([\d.]+) \| ([≥≤]) ([\d.]+) \|$", (ROOT / "docs/kernels.md").read_text(), re.MULTILINE
    )
    reported = [(float(found), sign, float(aim)) for _, found, sign, aim in rows]
    assert len(reported) == 5
    shown = re.findall(r"([\d.]+) \(([≥≤]) ([\d.]+)\)", (ROOT / "README.md").read_text())
    assert [(float(found), sign, float(aim)) for found, sign, aim in shown] == reported


def test_the_changelog_tells_of_this_version():
    versions = re.findall(
        r"^## (\d+\.\d+\.\d+), (?:unreleased|\d{4}-\d{2}-\d{2})$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    # Read, for importing the package imports every framework.
    (version,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "backbones/__init__.py").read_text(), re.MULTILINE)
    assert versions[0] == version
    assert versions == sorted(versions, key=lambda version: [*map(int, version.split("."))], reverse=True)


def test_the_site_is_built_strictly(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (make docs has an environment of its own)")
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # One page for each document, and the docstrings on that of the API.
    built = {path.relative_to(tmp_path / "site").with_suffix("") for path in (tmp_path / "site").rglob("*.html")}
    pages = {page.relative_to(ROOT).with_suffix("") for page in PAGES}
    assert {page.with_name("index") if page.name == "README" else page for page in pages} <= built
    assert "Stochastic depth of the last block" in (tmp_path / "site/docs/api.html").read_text()
