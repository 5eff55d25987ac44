"""Runs the tests of Detectron2 and detrex, or says what they lack: alone they would be skipped.

    make test-detectron2 DETECTRON2_ROOT=FOLDER DETREX_ROOT=FOLDER VENV=FOLDER

The virtual environment has both built into it, the roots are their checkouts; detectron2_projects/README.md says how.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.detectron2_checkouts import LANDMARKS

TESTS = (
    "tests/integrations/app/test_sources.py",
    "tests/integrations/test_detectron2.py",
    "tests/integrations/test_detectron2_names.py",
    "tests/integrations/test_detectron2_results.py",
    "tests/integrations/test_detectron2_stand_in.py",
    "tests/integrations/test_detectron2_yaml.py",
    "tests/integrations/test_detrex.py",
    "tests/integrations/test_flops.py",
    "tests/test_checkpoint_matrix.py",
    "tests/test_detectron2_projects.py",
    "tests/test_detectron2_tools.py",
    "tests/test_docs_commands.py",
    "tests/test_survival_detectron2.py",
)


def main() -> None:
    lacks = missing(os.environ)
    if lacks:
        listed = "\n".join(f"  - {line}" for line in lacks)
        sys.exit(
            f"The tests of Detectron2 and detrex cannot run:\n{listed}\ndetectron2_projects/README.md has the set-up."
        )
    # What is skipped all the same is said, with its reason.
    sys.exit(subprocess.run([sys.executable, "-m", "pytest", "-rs", *sys.argv[1:], *TESTS]).returncode)


def missing(environment: Mapping[str, str]) -> list[str]:
    """What the tests need and this interpreter or ``environment`` does not have."""
    lacks = [
        f"{package} is not installed for {sys.executable}"
        for package in ("detectron2", "detrex")
        if importlib.util.find_spec(package) is None
    ]
    for variable, landmark in LANDMARKS.items():
        root = environment.get(variable)
        if not root:
            lacks.append(f"{variable} does not name a checkout")
        elif not (Path(root) / landmark).is_file():
            lacks.append(f"{variable}={root} has no {landmark}")
    return lacks


if __name__ == "__main__":
    main()
