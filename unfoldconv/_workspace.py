"""How much memory a convolution may use beyond its operands, its result and the packed weight."""

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
