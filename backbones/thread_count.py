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

    So now and then a few steps run with one thread more or less, and what is faster is kept. A number that turned out
    slower, or that was left for a faster one, is tried again the later the more that will cost, so that trials take
    about a fiftieth of the time. Two steps that stall, or some that take noticeably longer, bring a trial of one thread
    less at once, and a trial ends with the first step that stalls.

    Args:
        most: Threads to use at most; None for the number that PyTorch uses now.

    Raises:
        ValueError: ``most`` is less than 1.
    """

    # Steps of a trial; before the first trial; and whose median tells a change.
    TRIAL = 4
    FIRST = 3
    RECENT = 5
    INTERVAL = 50
    LONGEST_INTERVAL = 1000
    # What trials may cost, as a share of all time.
    COST = 0.02
    # A trial wins, or a change is sudden, beyond the usual scatter of steps; a step that stalls is far beyond it.
    GAIN = 0.9
    SUDDEN = 1.3
    STALL = 2.0

    def __init__(self, most: int | None = None):
        self.most = torch.get_num_threads() if most is None else most
        if self.most < 1:
            raise ValueError(f"most must be at least 1, got {most}")
        self.count = self.most
        self._direction = -1
        self._trial: tuple[int, float] | None = None
        self._times: deque[float] = deque()
        self._usual: float | None = None
        # The first trial comes at once, for the neighbour may be there already.
        self._settle(None, self.FIRST)

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
        if self._trial is not None:
            stalls = seconds > self.STALL * self._trial[1]
            return self._judge() if stalls or len(self._times) == self.TRIAL else None
        self._remaining -= 1
        slow = self._slow()
        if slow is not None and self.count > 1:
            # What makes all steps longer is no reason for more threads.
            self._direction = -1
            self._begin_trial(slow)
        elif self._remaining <= 0:
            self._begin_trial(median(self._times))
        return None

    def _slow(self) -> float | None:
        """What a step takes since steps became longer; None where they did not."""
        if self._usual is None:
            return None
        # One step alone may have waited for a disk. Those before the change say nothing of what follows it.
        last = list(self._times)[-2:]
        if len(last) == 2 and min(last) > self.STALL * self._usual:
            return min(last)
        recent = median(self._times)
        return recent if len(self._times) == self.RECENT and recent > self.SUDDEN * self._usual else None

    def _begin_trial(self, before: float) -> None:
        if not self._is_room():
            self._direction = -self._direction
        self._trial = (self.count + self._direction, before)
        self._times = deque(maxlen=self.TRIAL)
        torch.set_num_threads(self._trial[0])

    def _judge(self) -> str | None:
        assert self._trial is not None
        count, before = self._trial
        times = list(self._times)
        # The first step with another number of threads starts or parks them.
        tried = median(times[1:] or times)
        if tried < self.GAIN * before:
            said = f"Threads: {count}, for a step takes {tried:.3f} s, with {self.count} it takes {before:.3f} s"
            self.count = count
            # A narrow win may be chance, and looking again is cheap; a trial of what stalls costs one step.
            again = self._is_room() or before <= self.STALL * tried
            self._settle(tried, self.RECENT if again else self._interval(before / tried - 1))
            return said
        torch.set_num_threads(self.count)
        self._direction = -self._direction
        self._settle(before, self._interval(sum(times) / before - len(times)))
        return None

    def _is_room(self) -> bool:
        """Whether there is a number of threads further on in the direction."""
        return 1 <= self.count + self._direction <= self.most

    def _interval(self, loss: float) -> int:
        """Steps until a trial that takes the time of ``loss`` steps more than its own."""
        return int(min(max(self.INTERVAL, loss / self.COST), self.LONGEST_INTERVAL))

    def _settle(self, usual: float | None, remaining: int) -> None:
        self._trial = None
        self._times = deque(maxlen=self.RECENT)
        self._usual = usual
        self._remaining = remaining
