"""im2col and col2im, each the other's adjoint and so its derivative. `window` is stride, both paddings and dilation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from . import _checks as checks
from ._autograd import define
from ._geometry import check_rank
from ._ops import FIRST, FULL, SECOND, SUM, Op, Sharding
from ._vmap import over_batch

Call = Callable[..., Tensor]

_LINES = ((FULL, FULL), (FIRST, FIRST), (SUM, SUM))
_LINES_OF_CHANNELS = ((SECOND, SECOND),)


# --- image (N, C, *I) -> columns (N, C * prod(kernel_size), prod(P)) --------------------------------------------------


def _fake_im2col(input: Tensor, kernel_size: Sequence[int], *lists: Sequence[int]) -> Tensor:
    window = checks.window_of_op(kernel_size, lists)
    checks.check_dim("input", input, len(kernel_size) + 2, "(batch, channels, *size)")
    checks.check_plain_dtype(input)
    positions = checks.product(checks.positions_of(input.shape[2:], kernel_size, window))
    (batch, channels), taps = input.shape[:2], checks.product(kernel_size)
    checks.check_bytes("columns", (batch, channels, taps, positions), input.itemsize)
    return input.new_empty((batch, channels * taps, positions))


def _even_channels_of_image(input: Any, *_: Any) -> bool:
    """Shards of the rows of columns are shards of the channels where every rank has as many of them."""
    return bool(input.shape[1] % input.mesh.size() == 0)


im2col: Call = define(
    Op(
        "im2col",
        _fake_im2col,
        gradients=(lambda grad, shape, numbers: col2im(grad, shape[2:], *numbers),),
        vmap=over_batch,
        sharding=Sharding(_LINES, _LINES_OF_CHANNELS, _even_channels_of_image),
    )
)


# --- columns (N, C * prod(kernel_size), prod(P)) -> image (N, C, *input_size) -----------------------------------------


def _fake_col2im(
    columns: Tensor, input_size: Sequence[int], kernel_size: Sequence[int], *lists: Sequence[int]
) -> Tensor:
    window = checks.window_of_op(kernel_size, lists)
    check_rank("output_size", input_size, len(kernel_size))
    checks.check_dim("columns", columns, 3, "(batch, channels * prod(kernel_size), positions)")
    checks.check_summed(columns)
    positions = checks.product(checks.positions_of(input_size, kernel_size, window))
    checks.check_rows(columns, kernel_size)
    checks.check_column_positions(columns, positions, input_size, kernel_size, window)
    sizes = (columns.shape[0], columns.shape[1] // checks.product(kernel_size), *input_size)
    checks.check_bytes("output", sizes, columns.itemsize)
    return columns.new_empty(sizes)


def _even_channels_of_columns(columns: Any, input_size: Any, kernel_size: Any, *_: Any) -> bool:
    return bool(columns.shape[1] // math.prod(kernel_size) % columns.mesh.size() == 0)


col2im: Call = define(
    Op(
        "col2im",
        _fake_col2im,
        gradients=(lambda grad, shape, numbers: im2col(grad, *numbers[1:]),),
        vmap=over_batch,
        sharding=Sharding(_LINES, _LINES_OF_CHANNELS, _even_channels_of_columns),
    )
)
