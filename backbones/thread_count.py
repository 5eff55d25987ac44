"""How many threads a training on a processor uses, found by timing its steps."""

import os
from collections import deque
from statistics import median

import torch


def may_choose_threads(device_type: str, processes: int) -> bool:
    """Whether the number of threads is ours to find: on a CPU, in one process, where ``OMP_NUM_THREADS`` says nothing.

    Args:
        device_type: Where the model trains, as in ``tensor.device.type``.
        processes: How many train it.
    """
    return device_type == "cpu" and processes == 1 and "OMP_NUM_THREADS" not in os.environ


class ThreadCount:
    """Moves PyTorch's number of threads to where the steps of a training are shortest, again and again.

    The threads of an operation wait for each other by spinning. That is the fastest way on an idle machine; beside a
    program that keeps one core busy each wait lasts until the scheduler comes round, and one thread less is several
    times faster. Nothing that can be read from the machine says which holds, and it changes in the course of a run.

    So now and then a few steps run with one thread more or less, and what is faster is kept. A trial that turned out
    slower is repeated the later the more it cost, so that trials take about a fiftieth of the time; steps that suddenly
    take longer bring the next one at once.

    Args:
        most: Threads to use at most; None for the number that PyTorch uses now.

    Raises:
        ValueError: ``most`` is less than 1.
    """

    TRIAL = 4
    RECENT = 5
    INTERVAL = 50
    LONGEST_INTERVAL = 1000
    # What trials may cost, as a share of all time.
    COST = 0.02
    # A trial wins, or a change is sudden, beyond the usual scatter of steps.
    GAIN = 0.9
    SUDDEN = 1.3

    def __init__(self, most: int | None = None):
        self.most = torch.get_num_threads() if most is None else most
        if self.most < 1:
            raise ValueError(f"most must be at least 1, got {most}")
        self.count = self.most
        self._direction = -1
        self._trial: tuple[int, float] | None = None
        self._times: deque[float] = deque()
        self._usual: float | None = None
        self._remaining = 0
        # The first trial comes at once, for the neighbour may be there already.
        self._settle(self.RECENT)

    def step(self, seconds: float) -> str | None:
        """Takes the time that a step took, and sets the number of threads of the next one.

        Args:
            seconds: By the clock, from the beginning of the step to its end.

        Returns:
            What was chosen and why, where that changed; else None.
        """
        if self.most == 1:
            return None
        self._times.append(seconds)
        if self._trial is None:
            self._remaining -= 1
            full = len(self._times) == self.RECENT
            if full and self._usual is None:
                self._usual = median(self._times)
            sudden = full and self._usual is not None and median(self._times) > self.SUDDEN * self._usual
            if sudden or (full and self._remaining <= 0):
                self._begin_trial()
        elif len(self._times) == self.TRIAL:
            # The first step with another number of threads starts or parks them.
            return self._judge(median(list(self._times)[1:]))
        return None

    def _begin_trial(self) -> None:
        before = median(self._times)
        if not 1 <= self.count + self._direction <= self.most:
            self._direction = -self._direction
        self._trial = (self.count + self._direction, before)
        self._times = deque(maxlen=self.TRIAL)
        torch.set_num_threads(self._trial[0])

    def _judge(self, tried: float) -> str | None:
        assert self._trial is not None
        count, before = self._trial
        if tried < self.GAIN * before:
            said = f"Threads: {count}, for a step takes {tried:.3f} s, with {self.count} it takes {before:.3f} s"
            self.count = count
            self._settle(self.RECENT)
            return said
        torch.set_num_threads(self.count)
        self._direction = -self._direction
        loss = self.TRIAL * max(tried / before - 1, 0.0)
        self._settle(int(min(max(self.INTERVAL, loss / self.COST), self.LONGEST_INTERVAL)))
        return None

    def _settle(self, remaining: int) -> None:
        self._trial = None
        self._times = deque(maxlen=self.RECENT)
        self._usual = None
        self._remaining = remaining
