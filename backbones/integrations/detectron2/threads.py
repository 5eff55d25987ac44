"""The number of threads of a training on a CPU."""

import logging
import time

from detectron2.engine import HookBase

from backbones.thread_count import ThreadCount

logger = logging.getLogger("detectron2.defocus")


class ThreadCountHook(HookBase):
    """Finds the number of threads with which a training on a CPU is fastest, and follows it: `ThreadCount`."""

    def __init__(self):
        self.thread_count = ThreadCount()

    def before_step(self) -> None:
        """Starts the clock."""
        self.start = time.perf_counter()

    def after_step(self) -> None:
        """Sets the threads of the next step by the time of this one, and logs a change."""
        said = self.thread_count.step(time.perf_counter() - self.start)
        if said:
            logger.info(said)
