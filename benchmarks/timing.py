"""Clocks, and two implementations timed in turn.

A measurement drifts with the machine's clock frequency and its other load. So the two sides of a comparison run in
turn in one process, A B A B, and the report gives the median of the ratios of neighbours, not the ratio of medians.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

Run = Callable[[], object]

WARM_UP_CALLS = 1
MIN_ROUNDS = 3
CPU_MIN_SECONDS = 2e-3
"""On a CPU, one measurement repeats the call until this much time has gone by, and takes the mean."""
CUDA_FLUSH_BYTES = 256 << 20
"""Written before each measurement on a GPU: several times its L2 cache, so that operands come from memory."""


class Clock(Protocol):
    """Measures calls on one kind of device."""

    def measure(self, run: Run) -> float:
        """Seconds that one call takes."""
        ...

    def now(self) -> float:
        """Seconds of wall-clock time since some moment; for budgets."""
        ...


class CpuClock:
    """``time.perf_counter`` around as many calls as fill `CPU_MIN_SECONDS`. Caches are as the call before left them."""

    def now(self) -> float:
        """Seconds."""
        return time.perf_counter()

    def measure(self, run: Run) -> float:
        """Seconds a call, the mean of several."""
        calls = 0
        start = self.now()
        while True:
            run()
            calls += 1
            elapsed = self.now() - start
            if elapsed >= CPU_MIN_SECONDS:
                return elapsed / calls


class CudaClock:
    """CUDA events around one call, on the current stream, after the L2 cache was overwritten.

    The write also keeps the GPU busy while the host launches the call, so the host's share is hidden where it is
    shorter than the write.
    """

    def __init__(self, device: torch.device) -> None:
        self._flushed = torch.empty(CUDA_FLUSH_BYTES, dtype=torch.uint8, device=device)

    def now(self) -> float:
        """Seconds."""
        return time.perf_counter()

    def measure(self, run: Run) -> float:
        """Seconds of one call."""
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flushed.zero_()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3


def make_clock(device: torch.device) -> Clock:
    """The clock for a device."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()


@dataclass(frozen=True)
class Quartiles:
    """Median and the quartiles around it."""

    q1: float
    median: float
    q3: float

    @staticmethod
    def of(values: list[float]) -> "Quartiles":
        """Quartiles with linear interpolation; a single value is all three."""
        if len(values) == 1:
            return Quartiles(values[0], values[0], values[0])
        return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Race:
    """Times of two sides, in seconds, round by round."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> Quartiles:
        """Quartiles of theirs / ours, round by round; above one where ours is faster."""
        return Quartiles.of([theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)])


def race(ours: Run, theirs: Run, clock: Clock, max_rounds: int, seconds: float) -> Race:
    """Times two calls in turn.

    Args:
        ours: One side.
        theirs: The other.
        clock: Measures both.
        max_rounds: Rounds at most.
        seconds: No new round begins after this time, warm-up included, once there are `MIN_ROUNDS` of them
            (or `max_rounds`, if that is fewer).

    Returns:
        The times of all rounds.
    """
    return Race(*take_turns((ours, theirs), clock, max_rounds, seconds))


def take_turns(runs: Sequence[Run], clock: Clock, max_rounds: int, seconds: float) -> list[list[float]]:
    """Times any number of calls in turn; see `race`.

    Returns:
        The times of all rounds, call by call.
    """
    deadline = clock.now() + seconds
    for run in runs:
        for _ in range(WARM_UP_CALLS):
            run()
    times: list[list[float]] = [[] for _ in runs]
    with no_garbage_collection():
        while len(times[0]) < max_rounds and (len(times[0]) < MIN_ROUNDS or clock.now() < deadline):
            for run, measured in zip(runs, times, strict=True):
                measured.append(clock.measure(run))
    return times


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keeps Python from looking for garbage in the midst of a measurement."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
