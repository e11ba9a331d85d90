"""Settings of the whole process: called they are set, in a `with` statement they are put back at its end."""

import operator
from types import TracebackType

from . import _ops
from ._geometry import GeometryError


class workspace_limit:
    """Bounds the workspace of every convolution, in bytes: per thread on the CPU, per op on CUDA.

    Called, it sets the limit; used in a `with` statement, it puts the former limit back at the end. It holds for the
    whole process. The defaults are 2 MiB on the CPU and 32 MiB on CUDA. A convolution takes at least one column
    (C / groups * prod(kernel_size) elements), however small the limit.

    Args:
        bytes: The limit for both devices.

    Raises:
        GeometryError: if the limit is not positive.
        TypeError: if it is not a whole number.

    Example:
        >>> import torch, unfoldconv as uc
        >>> with uc.workspace_limit(64 * 1024):
        ...     _ = uc.conv2d(torch.ones(1, 3, 32, 32), torch.ones(8, 3, 3, 3))
    """

    def __init__(self, bytes: int) -> None:
        limit = operator.index(bytes)
        if not 0 < limit < 2**63:
            raise GeometryError(f"workspace limit must be positive and fit 64 bits, but got {bytes}")
        self._former = _ops.get_workspace_limit()
        _ops.set_workspace_limit(limit, limit)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _ops.set_workspace_limit(*self._former)


class benchmark:
    """Whether convolutions try their engines and keep the fastest, as `torch.backends.cudnn.benchmark` does of cuDNN's.

    Called, it says so from then on; used in a `with` statement, it puts the former choice back at the end. It holds for
    the whole process. The first call of each kind (op, dtype, shapes, strides, window, groups, device, threads) then
    runs a few times over by each engine that can compute it, and waits for the device; later calls take what was the
    fastest, which `explain` shows. A call that is being captured into a CUDA graph tries nothing.

    Engines round differently, so with trials results may differ from one process to the next, and those of an image may
    depend on the size of its batch.

    Args:
        enabled: Whether to. At the start they do not: the choice is by shapes and dtype alone.

    Raises:
        TypeError: if it is not a bool.

    Example:
        >>> import torch, unfoldconv as uc
        >>> with uc.benchmark(True):
        ...     _ = uc.conv2d(torch.ones(1, 3, 32, 32), torch.ones(8, 3, 3, 3))
    """

    def __init__(self, enabled: bool) -> None:
        if not isinstance(enabled, bool):
            raise TypeError(f"enabled must be a bool, but got {type(enabled).__name__}")
        self._former = _ops.get_tuning()
        _ops.set_tuning(enabled)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _ops.set_tuning(self._former)
