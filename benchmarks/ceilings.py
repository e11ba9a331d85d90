"""What the device can do at best, measured on the spot: memory bandwidth and rate of a large matrix product.

The floor of a case is max(bytes / bandwidth, FLOPs / rate): no implementation that reads its operands from memory and
uses the units of a matrix product is faster. On a CPU the operands of a small layer stay in cache from call to call,
so there a case can be below its floor.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .cases import Case
from .hardware import last_level_cache_bytes
from .timing import Clock

REPETITIONS = 5
CUDA_COPY_BYTES = 1 << 30
CPU_ARRAY_BYTES = 256 << 20
CACHE_MULTIPLE = 4
"""STREAM's rule: each array is at least four times the last-level cache."""
MATRIX_SIZES = (512, 1024, 2048, 4096, 8192)
LONG_ENOUGH_SECONDS = {"cpu": 0.05, "cuda": 0.005}
"""A matrix product that takes this long is large enough; no larger one is tried."""


@dataclass(frozen=True)
class Ceilings:
    """The best that was seen.

    Attributes:
        bandwidth: Bytes per second, read and written together, by copy or triad, whichever is faster.
        flop_rate: FLOPs per second of a square matrix product in the dtype and precision at hand, or a wider dtype.
    """

    bandwidth: float
    flop_rate: float

    def floor_seconds(self, case: Case) -> float:
        """The time below which the case cannot be done from memory."""
        work = case.problem.work(case.pass_)
        transfer = work.elements * case.dtype.stored.itemsize / self.bandwidth
        return max(transfer, work.valid_flop * case.dtype.flop_factor / self.flop_rate)


def measure_bandwidth(device: torch.device, clock: Clock) -> float:
    """Bytes per second of the better of copy (a = b) and triad (a = b + scalar * c)."""
    if device.type == "cuda":
        array_bytes = min(CUDA_COPY_BYTES, torch.cuda.mem_get_info(device)[0] // 8)
    else:
        array_bytes = max(CPU_ARRAY_BYTES, CACHE_MULTIPLE * last_level_cache_bytes())
    a, b, c = (torch.ones(array_bytes // 4, dtype=torch.float32, device=device) for _ in range(3))
    copy = 2 * array_bytes / _best(lambda: a.copy_(b), clock)
    triad = 3 * array_bytes / _best(lambda: torch.add(b, c, alpha=3.0, out=a), clock)
    return max(copy, triad)


def measure_flop_rate(case: Case, clock: Clock) -> float:
    """FLOPs per second of the best square matrix product for a case's dtype; call it inside `cases.precision`.

    For a 16-bit dtype float32 is tried as well: an implementation may widen its operands, and on a processor without
    instructions for the dtype that is what the best one does.
    """
    stored = case.dtype.stored
    computed = {stored, torch.float32} if stored.itemsize == 2 else {stored}
    return case.dtype.flop_factor * max(_multiply_add_rate(dtype, case.device, clock) for dtype in computed)


def _multiply_add_rate(dtype: torch.dtype, device: torch.device, clock: Clock) -> float:
    """Twice the multiply-adds per second."""
    best = 0.0
    for size in MATRIX_SIZES:
        # Random, as the cases are: a GPU draws less power, and clocks higher, on constant data.
        a, b = (torch.randn((size, size), dtype=dtype, device=device) for _ in range(2))
        out = torch.empty_like(a)
        seconds = _best(lambda: torch.mm(a, b, out=out), clock)  # noqa: B023  called in this iteration only
        best = max(best, 2 * size**3 / seconds)
        if seconds > LONG_ENOUGH_SECONDS[device.type]:
            break
    return best


def _best(run: Callable[[], object], clock: Clock) -> float:
    run()
    return min(clock.measure(run) for _ in range(REPETITIONS))
