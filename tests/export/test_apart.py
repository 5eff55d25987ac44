"""What runs in a program of its own: it equals what runs here, and its end is an error with a name."""

import gc
import os
import signal
import sys

import pytest
import torch

from backbones.export import ExportError, Target, export
from backbones.export.apart import Apart
from tests.conftest import ROOT
from tests.export.networks import of_module


def load_rows(path):
    """Sums of the rows, and twice the images."""
    assert path.name == "rows"
    return lambda images: (images.sum(-1), images * 2)


def load_bad(path):
    """By the number of rows of the images: says so and fails, ends, or dies."""

    def run(images):
        match images.shape[-2]:
            case 1:
                raise ValueError("a row\nand more")
            case 2:
                os._exit(3)
            case 3:
                os.kill(os.getpid(), signal.SIGSEGV)
        return (images,)

    return run


def write_empty(network, path):
    path.write_bytes(b"")


def test_it_equals_what_runs_here(tmp_path):
    run = Apart(load_rows, tmp_path / "rows")
    for shape in (2, 3, 5, 7), (1, 3, 1, 1):
        images = torch.randn(shape)
        sums, doubles = run(images)
        torch.testing.assert_close(sums, images.sum(-1))
        torch.testing.assert_close(doubles, images * 2)
    program = run.program
    del run
    gc.collect()
    assert program.returncode == 0


def test_modules_are_found_there_as_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *filter(None, sys.path)])
    assert len(Apart(load_rows, tmp_path / "rows")(torch.ones(1, 3, 2, 2))) == 2


def test_how_it_failed_is_said(tmp_path):
    run = Apart(load_bad, tmp_path)
    with pytest.raises(RuntimeError, match=r"^a row$"):
        run(torch.zeros(1, 3, 1, 4))
    # An error is no end.
    torch.testing.assert_close(run(torch.ones(1, 3, 4, 4))[0], torch.ones(1, 3, 4, 4))
    with pytest.raises(RuntimeError, match="ended with status 3"):
        run(torch.zeros(1, 3, 2, 4))
    with pytest.raises(RuntimeError, match="ended with status 3"):
        run(torch.zeros(1, 3, 4, 4))


def test_a_crash_in_the_check_leaves_nothing(tmp_path):
    target = Target("crash", (".bin",), write_empty, lambda path: Apart(load_bad, path), dict)
    network = of_module(torch.nn.Identity(), ("map",))
    with pytest.raises(ExportError, match=r"images of 1 × 3 × 8: the program that ran it ended by SIGSEGV"):
        export(network, target, tmp_path / "net.bin", sizes=[(1, 4, 8), (1, 3, 8)])
    assert not list(tmp_path.iterdir())
