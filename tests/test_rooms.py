"""How the house is divided: CONTRIBUTING's map names every room, no room is too large, and no file."""

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("backbones", "defocus_commands", "defocus_eval", "studies", "tools")
FILES = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
# Folders end in a slash, files are listed with commas between; what they hold stands behind.
ENTRY = re.compile(r"^(?P<indent> *)(?P<names>[\w.]+(?:/|\.\w+)(?:, [\w.]+\.\w+)*) +\S")


def lines(path: Path) -> int:
    return len((ROOT / path).read_text().splitlines())


def mapped() -> list[Path]:
    """What the map names, from the root; an entry lies in the folder above it that is indented less."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (block,) = re.findall(r"^## The map\n\n```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found, folders = [], {}
    # Far to the right what is said goes on.
    for line in re.sub(r"\n {20,}", " ", block).splitlines():
        # The folder at the top of a package need say nothing.
        entry = ENTRY.match(line) or re.match(r"^(?P<indent> *)(?P<names>\w+/)$", line)
        assert entry is not None, f"the map has a line of another form: {line!r}"
        depth = len(entry["indent"])
        folders = {at: folder for at, folder in folders.items() if at < depth}
        above = folders[max(folders)] if folders else Path()
        for name in entry["names"].split(", "):
            found.append(above / name)
            if name.endswith("/"):
                folders[depth] = above / name
    return found


def test_what_the_map_names_is_there():
    named = mapped()
    assert {Path("backbones/ops/selective_scan"), Path("backbones/ops/dispatch.py"), Path("tools")} <= {*named}
    assert [str(path) for path in named if not (ROOT / path).exists()] == []


def test_the_map_names_every_package():
    packages = {path.parent for path in FILES if path.name == "__init__.py"}
    assert sorted(map(str, packages - {*mapped()})) == []


def test_every_package_says_what_may_be_in_it():
    said = {
        str(path.parent.relative_to(ROOT)): ast.get_docstring(ast.parse(path.read_text())) or ""
        for package in (*PACKAGES, "tests")
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert sorted(package for package, text in said.items() if not text) == []
    mirrored = re.findall(r"^Mirrors (\S+)\.$", "\n".join(said.values()), re.MULTILINE)
    assert len(mirrored) > 10 and [folder for folder in mirrored if not (ROOT / folder).is_dir()] == []


def test_no_room_holds_more_than_a_third_of_the_house():
    # Of the largest package each folder is a room.
    rooms = Counter()
    for path in FILES:
        rooms["/".join(path.parts[: 2 if path.parts[0] == "backbones" else 1])] += lines(path)
    assert rooms["backbones/ops"] > 3000
    assert {room: count for room, count in rooms.items() if 3 * count > rooms.total()} == {}


def test_no_file_is_longer_than_350_lines_but_kernels():
    files = [*FILES, *(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))]
    assert [(str(path), lines(path)) for path in files if lines(path) > 350 and path.stem != "triton_kernels"] == []
