"""Processes that need not import the frameworks: forked from one that did, which takes ten seconds once for all."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess

# What is not installed is left out. Nothing of ours: each process imports that itself.
_IMPORTED = [
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
]


def start(target: Callable, *arguments) -> BaseProcess:
    """Calls a function in a process of its own, which has started when this returns."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    process = context.Process(target=target, args=arguments)
    process.start()
    return process
