"""Breaks the code on purpose, one small change at a time, and says which changes no test notices.

    python -m tests.mutants.run                       every list beside this file
    python -m tests.mutants.run edge.json --only lr   one list, of it what has "lr" in its file or its note

Each entry of a list names a ``file``, a string in it (``old``), what to put in its place (``new``), the ``tests`` that
must fail then, and what the change does (``note``). All runs in a copy of the tree. First the tests run on unchanged
code, for what fails anyway tells nothing. An entry whose ``old`` is not in its file exactly once, or whose tests are
not there, is stale: the code went on, and so must the entry. Exit status 1 tells of survivors or stale entries, 2 of
tests that fail on unchanged code.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import IO, NamedTuple

from tests import forked

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# A change may make a loop that never ends.
TIMEOUT = 900


class Mutant(NamedTuple):
    """One change.

    Attributes:
        file: What is changed, from the root of the project.
        old: A string that occurs in it once.
        new: What stands there instead.
        tests: What pytest is asked to run; one of it must fail.
        note: What the change does.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    note: str


class Outcome(NamedTuple):
    """What became of a list: mutants by their fate."""

    noticed: list[Mutant]
    survived: list[Mutant]
    stale: list[Mutant]
    skipped: list[Mutant]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", nargs="*", help="JSON files beside this program (default: all)")
    parser.add_argument("--only", default="", metavar="TEXT", help="those with TEXT in their file or note")
    args = parser.parse_args()
    paths = [HERE / name for name in args.lists] or sorted(HERE.glob("*.json"))
    try:
        mutants = [mutant for path in paths for mutant in read_list(path)]
        mutants = [mutant for mutant in mutants if args.only in mutant.file or args.only in mutant.note]
        if not mutants:
            parser.error(f"no entry has {args.only!r} in its file or note")
        outcome = run_mutants(ROOT, mutants)
    except ValueError as error:
        sys.exit(f"{error}")
    except RuntimeError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    sys.exit(1 if outcome.survived or outcome.stale else 0)


def read_list(path: Path) -> list[Mutant]:
    """The entries of a JSON file.

    Raises:
        ValueError: There is no such file, it is no JSON, or an entry has other keys.
    """
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    for number, entry in enumerate(entries, 1):
        if set(entry) != set(Mutant._fields) or not entry["tests"]:
            raise ValueError(f"{path}, entry {number} must have {', '.join(Mutant._fields)}, tests not empty: {entry}")
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def run_mutants(root: Path, mutants: list[Mutant]) -> Outcome:
    """Tries each mutant on a copy of ``root``, and prints its fate.

    Raises:
        RuntimeError: The tests fail on unchanged code.
    """
    outcome = Outcome([], [], [], [])
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy, cache = Path(folder) / "tree", Path(folder) / "cache"
        copy_tree(root, copy)
        collected = collect(copy, {file_of(test) for mutant in mutants for test in mutant.tests}, cache)
        fresh = [mutant for mutant in mutants if is_fresh(copy, mutant, collected)]
        outcome.stale.extend(mutant for mutant in mutants if mutant not in fresh)
        wanted = {test for mutant in fresh for test in mutant.tests}
        # A file that is skipped as a whole has no tests that could be named.
        tests = [test for test in sorted(wanted) if any(belongs(name, test) for name in collected)]
        print(f"Unchanged code: {len(tests)} tests or files of tests", flush=True)
        passed = tests_that_pass(copy, tests, cache) if tests else set()
        for number, mutant in enumerate(fresh, 1):
            start = monotonic()
            if not any(belongs(name, test) for name in passed for test in mutant.tests):
                fate, group = "not run: its tests are skipped here", outcome.skipped
            elif survives(copy, mutant, cache):
                fate, group = "SURVIVED", outcome.survived
            else:
                fate, group = "noticed", outcome.noticed
            group.append(mutant)
            seconds = monotonic() - start
            print(f"[{number}/{len(fresh)}] {fate} ({seconds:.0f} s) {mutant.file}: {mutant.note}", flush=True)
    print_summary(outcome)
    return outcome


def print_summary(outcome: Outcome) -> None:
    """Counts, and what wants doing, in full."""
    counts = ", ".join(f"{len(group)} {name}" for name, group in outcome._asdict().items())
    print(f"\n{counts}")
    for mutant in outcome.survived:
        print(f"\nSURVIVED {mutant.file}: {mutant.note}\n- {mutant.old}\n+ {mutant.new}\n  {' '.join(mutant.tests)}")
    for mutant in outcome.stale:
        print(
            f"\nSTALE {mutant.file}: {mutant.note}\n  this is not there exactly once, or a test is not there:\n"
            f"- {mutant.old}\n  {' '.join(mutant.tests)}"
        )


def copy_tree(root: Path, target: Path) -> None:
    """Copies what git knows or would take, so that no environment and no data set comes along."""
    command = ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        # One that is deleted and not committed is listed too.
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)


def collect(root: Path, files: set[str], cache: Path) -> list[str]:
    """Names of the tests in ``files``, as far as they are there; of one that is skipped as a whole, none.

    Raises:
        RuntimeError: A file cannot be imported.
    """
    there = sorted(file for file in files if (root / file).is_file())
    code, lines = run_tests(root, there, cache, "--override-ini=addopts=", "-q", "--collect-only", progress=True)
    # 5: all of them are skipped.
    if code not in (0, 5):
        raise RuntimeError(f"the tests cannot be imported:\n{''.join(lines[-80:])}")
    return [line.rstrip() for line in lines if "::" in line]


def is_fresh(root: Path, mutant: Mutant, collected: list[str]) -> bool:
    """Whether the string to replace is there, exactly once, and so are its tests unless their file is skipped."""
    path = root / mutant.file
    for test in mutant.tests:
        of_file = [name for name in collected if file_of(name) == file_of(test)]
        absent = of_file and not any(belongs(name, test) for name in of_file)
        if absent or not (root / file_of(test)).is_file():
            return False
    return path.is_file() and path.read_text().count(mutant.old) == 1


def file_of(test: str) -> str:
    """The file of a test by its name."""
    return test.partition("::")[0]


def tests_that_pass(root: Path, tests: list[str], cache: Path) -> set[str]:
    """Names of those that pass on unchanged code, which leaves compiled kernels in ``cache``.

    Raises:
        RuntimeError: One fails, or there is no such test.
    """
    code, lines = run_tests(root, tests, cache, "-rp", progress=True)
    if code:
        raise RuntimeError(f"the tests do not pass on unchanged code:\n{''.join(lines[-80:])}")
    return {line.split()[1] for line in lines if line.startswith("PASSED ")}


def belongs(name: str, test: str) -> bool:
    """Whether pytest's ``name`` of a test is among those that ``test``, a file or a test of all parameters, means."""
    return name == test or name.startswith((f"{test}::", f"{test}["))


def survives(root: Path, mutant: Mutant, cache: Path) -> bool:
    """Whether all of its tests pass in spite of it; the file is put back."""
    path = root / mutant.file
    text = path.read_text()
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        # Kernels that a change had compiled are not to be found by the next one.
        with tempfile.TemporaryDirectory(prefix="kernels-", dir=root.parent) as own:
            if cache.is_dir():
                shutil.copytree(cache, own, dirs_exist_ok=True)
            return run_tests(root, list(mutant.tests), Path(own), "-x")[0] == 0
    finally:
        path.write_text(text)


def run_tests(
    root: Path, tests: list[str], cache: Path, *options: str, progress: bool = False
) -> tuple[int, list[str]]:
    """Runs pytest on the copy, and on nothing that is installed of the project.

    Returns:
        The exit status, and what was printed. What takes longer than `TIMEOUT` is killed, unless its ``progress`` is
        printed for somebody who waits.
    """
    environment = {
        "PYTHONPATH": str(root),
        "DEFOCUS_CACHE_DIR": str(cache),
        # A changed file of the same size and second would be taken for the one that was compiled.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with tempfile.NamedTemporaryFile("r", errors="replace") as output:
        words = ["-p", "no:cacheprovider", *options, *tests]
        process = forked.start(_run_pytest, str(root), environment, words, output.name)
        end, lines = monotonic() + TIMEOUT, []
        try:
            while process.is_alive() and (progress or monotonic() < end):
                process.join(0.2)
                for line in _whole_lines(output):
                    lines.append(line)
                    if progress and line.rstrip().endswith("%]"):
                        print(f"  {line.rstrip()}", flush=True)
        finally:
            # Not one that has ended: its number may be another's by now.
            if process.is_alive():
                process.kill()
                # And all that the tests have started.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.join()
        return process.exitcode, [*lines, *output]


def _whole_lines(file: IO[str]) -> Iterator[str]:
    """What was written since, but for a line that is not at its end."""
    while True:
        place = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(place)
            return
        yield line


def _run_pytest(root: str, environment: dict[str, str], words: list[str], output: str) -> None:
    """What the forked process does: the project is that in ``root``, and no other."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), stream)
    os.environ.update(environment)
    os.chdir(root)
    sys.dont_write_bytecode = True
    sys.path[:] = [root, *(place for place in sys.path if Path(place).resolve() not in (ROOT, HERE))]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    import pytest

    sys.exit(int(pytest.main(words)))


if __name__ == "__main__":
    main()
