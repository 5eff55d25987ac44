"""Where the tests find the source of Detectron2 and detrex, whose scripts and projects are not in their packages."""

import os
import sys
from pathlib import Path

import pytest

# A file in each of them.
LANDMARKS = {
    "DETECTRON2_ROOT": "tools/lazyconfig_train_net.py",
    "DETREX_ROOT": "projects/dino/modeling/dino.py",
}


def detectron2_root() -> Path:
    """The checkout that DETECTRON2_ROOT names; skips the test without one."""
    return _root("DETECTRON2_ROOT")


def detrex_root() -> Path:
    """The checkout that DETREX_ROOT names, made importable for its `projects`; skips the test without one."""
    pytest.importorskip("detrex", reason="detrex is not installed (build it from its source)")
    root = _root("DETREX_ROOT")
    if str(root) not in sys.path:
        sys.path.append(str(root))
    return root


def _root(variable: str) -> Path:
    root, landmark = os.environ.get(variable), LANDMARKS[variable]
    if root is None:
        pytest.skip(f"{variable} does not name a checkout")
    if not (Path(root) / landmark).is_file():
        pytest.fail(f"{variable}={root} has no {landmark}")
    return Path(root)
