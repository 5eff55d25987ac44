"""The documents: their pages, and the commands and Python in them.

A fence says its language. One that is not run says why, in a comment just above it:

    <!-- not run: 8 GPUs and COCO -->
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "results", "mmseg_configs", "detectron2_projects")
PAGES = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
# A template is no page, and its fences are for what others paste.
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
# What a command in a line of text begins with.
INLINE = re.compile(
    r"`((?:[A-Z_0-9]+=\S+ )*(?:make|python|pip|pytest|defocus|bash|accelerate|torchrun|tools/\w+\.(?:py|sh))\s[^`]+)`"
)
ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z_0-9]*)=(.*)", re.DOTALL)
# They stand before a command.
KEYWORDS = {"then", "do", "else"}


@dataclass(frozen=True)
class Block:
    """What stands between two fences.

    Attributes:
        page: The file.
        line: Where it begins, from 1 on.
        language: What the fence says.
        text: The lines between.
        reason: Why it is not run, or None.
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        yield Block(page, line, found["language"], found["text"], found["reason"])


def inline_commands(page: Path) -> list[str]:
    """Commands with arguments that stand within a line of text."""
    return [" ".join(found[1].split()) for found in INLINE.finditer(prose(page))]


def commands(text: str) -> list[list[str]]:
    """The commands of a shell's lines as words, variables that the lines set put in, keywords left out.

    Variables before a command stay its first words.
    """
    # As a shell does, before it looks for words; a `#` within a word is one of its letters.
    lines = re.sub(r"(^|\s)#[^\n]*", r"\1", text.replace("\\\n", " "))
    lexer = shlex.shlex(lines, posix=True, punctuation_chars=";&|\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&|\n"):
            found.append([])
        elif found[-1] or word not in KEYWORDS:
            found[-1].append(word)
    known: dict[str, str] = {}
    result = []
    for words in found:
        for name, value in known.items():
            words = [word.replace(f"${name}", value) for word in words]
        if len(words) == 1 and (set_here := ASSIGNMENT.fullmatch(words[0])):
            known[set_here[1]] = set_here[2]
        elif words:
            result.append(words)
    return result
