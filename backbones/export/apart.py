"""Runs an export in a program of its own: where compiled code crashes, only that program ends."""

import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from backbones.export.check import Runner, first_line


class Apart:
    """A `Runner` whose work is done by another program, until it is collected.

    Args:
        load: What gives the runner there, given the path. A function at the top of a module that can be imported.
        path: The export's file.
    """

    def __init__(self, load: Callable[[Path], Runner], path: Path) -> None:
        self.line, theirs = Pipe()
        names = [load.__module__, load.__name__, str(path), str(theirs.fileno())]
        start = f"import sys; from {__name__} import serve; serve(*sys.argv[1:])"
        # Found there as here: a checkout's programs put it on the path themselves.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", start, *names]
        self.program = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        weakref.finalize(self, _end, self.line, self.program)

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """The outputs for images.

        Raises:
            RuntimeError: It failed there, or the program ended.
        """
        try:
            self.line.send(images.numpy())
            outputs, error = self.line.recv()
        except (EOFError, OSError):
            status = self.program.wait()
            how = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
            raise RuntimeError(f"the program that ran it ended {how}") from None
        if error:
            raise RuntimeError(error)
        return [torch.from_numpy(output) for output in outputs]


def _end(line: Connection, program: subprocess.Popen) -> None:
    line.close()
    program.wait()


def serve(module: str, function: str, path: str, number: str) -> None:
    """What the other program does: images to outputs, or to what failed, until nobody asks any more."""
    line, run = Connection(int(number)), None
    while True:
        try:
            images = line.recv()
        except EOFError:
            return
        try:
            run = run or getattr(import_module(module), function)(Path(path))
            line.send(([output.numpy() for output in run(torch.from_numpy(images))], None))
        # Whatever it is, the one who asked is told.
        except Exception as error:
            line.send(([], first_line(error)))
