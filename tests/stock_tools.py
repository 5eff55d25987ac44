"""Runs scripts of mmdet and mmseg as commands, without the ten seconds that each would take to import the frameworks.

Each runs in a process of its own as ``__main__``, and imports what is ours. A test of each framework runs its script as
the command that a user types, too.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import forked

# As many processors as a test may take.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def run_command(*words) -> str:
    """What a Python program printed that a user would start so; it must succeed."""
    result = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, env=os.environ | ENVIRONMENT
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return result.stdout + result.stderr


def run_script(*words) -> str:
    """What a script printed, with its arguments; it must succeed."""
    status, output = try_script(*words)
    assert status == 0, output[-4000:]
    return output


def try_script(*words) -> tuple[int, str]:
    """Exit status of a script, with its arguments, and what it printed."""
    (result,) = try_scripts([words], [{}])
    return result


def try_scripts(commands: list, environments: list[dict[str, str]]) -> list[tuple[int, str]]:
    """The same of several at a time, each with variables of its own in its environment."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(number) for number in range(len(commands))]
        processes = [
            forked.start_program(words, ENVIRONMENT | environment, file)
            for words, environment, file in zip(commands, environments, files, strict=True)
        ]
        for process in processes:
            process.join()
        return [(p.exitcode, file.read_text(errors="replace")) for p, file in zip(processes, files)]
