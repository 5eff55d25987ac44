"""What the tests of Detectron2 and detrex lack is said, each with what it lacks; none is forgotten."""

import importlib.util
import re
import sys
from pathlib import Path

from tests import run_detectron2
from tests.detectron2_checkouts import LANDMARKS


def test_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "detrex" else object())
    (tmp_path / LANDMARKS["DETECTRON2_ROOT"]).parent.mkdir()
    (tmp_path / LANDMARKS["DETECTRON2_ROOT"]).touch()
    here = {"DETECTRON2_ROOT": str(tmp_path)}
    assert run_detectron2.missing({}) == [
        f"detrex is not installed for {sys.executable}",
        "DETECTRON2_ROOT does not name a checkout",
        "DETREX_ROOT does not name a checkout",
    ]
    assert run_detectron2.missing(here | {"DETREX_ROOT": str(tmp_path)})[1:] == [
        f"DETREX_ROOT={tmp_path} has no projects/dino/modeling/dino.py"
    ]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    (tmp_path / LANDMARKS["DETREX_ROOT"]).parent.mkdir(parents=True)
    (tmp_path / LANDMARKS["DETREX_ROOT"]).touch()
    assert run_detectron2.missing(here | {"DETREX_ROOT": str(tmp_path)}) == []


def test_every_file_that_is_skipped_without_them_is_run():
    skipping = re.compile(r"""(importorskip|find_spec)\(["'](detectron2|detrex)|detectron2_root|detrex_root""")
    files = {str(path) for path in Path("tests").rglob("test_*.py") if skipping.search(path.read_text())}
    assert files - {"tests/test_run_detectron2.py"} <= set(run_detectron2.TESTS)
