"""Peak extra memory of one call: above its operands and its result.

On CUDA: torch's own peak counter. cuBLAS workspaces are released first, so that a call which needs one is charged for
it. Memory that a library takes without torch's allocator is not seen.

On a CPU under Linux: the kernel's peak of resident memory (``VmHWM``, reset through ``/proc/self/clear_refs``), so
whatever allocates is seen: torch, oneDNN, the BLAS, our own code. Freed memory is handed back with ``malloc_trim``
first, because pages that stay with malloc would be reused unseen. It misses memory that was allocated but never
touched, and what a library kept for itself from earlier calls (packing buffers of a BLAS that are kept per thread,
compiled kernels). The error is below about 1 MiB; elsewhere the answer is None.
"""

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import no_garbage_collection

CUDA_ALLOCATION_BYTES = 512
"""torch's CUDA allocator rounds every block up to a multiple of this."""


def peak_extra_bytes(run: Callable[[], Tensor], device: torch.device) -> int | None:
    """Peak memory of a call above its operands and its result, in bytes.

    Args:
        run: The call, made at least once before, so that code and kernels are loaded.
        device: Where it works.

    Returns:
        The bytes, or None where they cannot be measured.
    """
    return _cuda_extra(run, device) if device.type == "cuda" else _resident_extra(run)


def _cuda_extra(run: Callable[[], Tensor], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = run()
    torch.cuda.synchronize(device)
    own = -(-result.nbytes // CUDA_ALLOCATION_BYTES) * CUDA_ALLOCATION_BYTES
    return max(0, torch.cuda.max_memory_allocated(device) - before - own)


def _resident_extra(run: Callable[[], Tensor]) -> int | None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError, TypeError):  # not Linux, not glibc, or not allowed
        return None
    with no_garbage_collection():
        before = _status_bytes("VmRSS")
        result = run()
        return max(0, _status_bytes("VmHWM") - before - result.nbytes)


def _status_bytes(key: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"/proc/self/status must have a line {key}, but has none")
    return int(match.group(1)) * 1024
