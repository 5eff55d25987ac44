"""Processes that need not import the frameworks: forked from one that did, which takes ten seconds once for all."""

import gc
import multiprocessing
import os
import re
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

# What is not installed is left out. Nothing of ours: each process imports that itself.
_IMPORTED = [
    "detectron2.evaluation",
    "matplotlib.pyplot",
    "mmdet.engine",
    "mmdet.evaluation",
    "mmdet.models",
    "mmdet.visualization",
    "mmseg.engine",
    "mmseg.evaluation",
    "mmseg.models",
    "mmseg.visualization",
    "pytest",
    "timm.models",
    "transformers.trainer",
]


def start(target: Callable, *arguments) -> BaseProcess:
    """Calls a function in a process of its own, which has started when this returns."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def start_program(argv: list, environment: dict[str, str], log: Path) -> BaseProcess:
    """Runs a program in a process and session of its own, and what it prints into ``log``."""
    return start(_run_program, [str(word) for word in argv], environment, str(log))


def _run_program(argv: list[str], environment: dict[str, str], log: str) -> None:
    os.setsid()
    # What the server has imported need not be looked through with each data set that mmengine makes.
    gc.freeze()
    # mmengine formats the config that a run leaves anew for each checkpoint, which takes longer than these runs train.
    if config := sys.modules.get("mmengine.config.config"):
        config.FormatCode = lambda text, **_: (text, True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.environ.update(environment)
    # OpenMP, which the server has loaded, has read its variable already.
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    # As of a program that is started by its file: the server hands its own way of starting processes down, and a signal
    # to the whole group would end a server of the data loader's before it has a worker.
    multiprocessing.set_start_method("fork", force=True)
    sys.argv = argv
    # As Python does for a program that it is given by its file.
    sys.path.insert(0, str(Path(argv[0]).parent))
    runpy.run_path(argv[0], run_name="__main__")


def status(process: BaseProcess, log: Path) -> int:
    """The exit status of a process of `start_program`; fails, with the end of its log, if it does not come to one."""
    process.join(300)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still running: {log.read_text()[-4000:]}")
    return process.exitcode


def wait_for(pattern: str, log: Path) -> None:
    """Returns when a log says what the regular expression finds."""
    end = time.monotonic() + 300
    while not (log.exists() and re.search(pattern, log.read_text())):
        assert time.monotonic() < end, log.read_text()[-4000:]
        time.sleep(0.05)


def free_port() -> int:
    """A port on this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
