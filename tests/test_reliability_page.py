"""docs/reliability.md names tests that exist, and counts them rightly."""

import ast
import re
from pathlib import Path

PAGE = Path("docs/reliability.md")


def test_each_fault_names_tests_that_exist():
    page = PAGE.read_text().split("## Faults")[1]
    faults = [line for line in page.splitlines() if line.startswith("|") and "::" in line]
    named = {tuple(test.split("::")) for line in faults for test in re.findall(r"`(tests/[^`]+)`", line)}
    for file, name in named:
        assert name in {node.name for node in ast.parse(Path(file).read_text()).body if hasattr(node, "name")}, name
    assert all("`tests/" in line for line in faults)
    total, tests = map(int, re.search(r"^(\d+) faults, shown by (\d+) tests:", page, re.M).groups())
    assert (total, tests) == (len(faults), len(named))
    parts = [sum("::" in line for line in section.splitlines()) for section in page.split("### ")[1:]]
    assert list(map(int, re.findall(r"(\d+) of ", page.splitlines()[2]))) == parts
