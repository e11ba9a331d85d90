"""Cases of the implicit matrix products, and how their results are checked."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cases import CASES, Case, channels_last, make_case
from compare import assert_within_rounding
from computations import expected_by_torch, operands

from .convolutions import compute

ARRANGEMENTS: tuple[Callable[[Tensor], Tensor], ...] = (Tensor.contiguous, channels_last)
ENGINE = "implicit_gemm"


def rounded_to_tf32(tensor: Tensor | None) -> Tensor | None:
    """To 10 bits of fraction, ties away from zero."""
    return None if tensor is None else ((tensor.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def check_formats(name: str, case: Case, dtype: torch.dtype, **options: Any) -> None:
    """Both memory formats of the operands and the result."""
    tensors = operands(name, case, dtype, "cpu")
    exact, magnitude = expected_by_torch(name, case, tensors)
    for arrange in ARRANGEMENTS:
        first, second = arrange(tensors[0]), arrange(tensors[1])
        to_format = Tensor.contiguous if name == "conv_weight_grad" else arrange
        actual = compute(name, case, first, second, tensors[2], to_format=to_format, **options)
        assert_within_rounding(actual, exact, magnitude, f"{dtype}, {arrange.__name__}")


# Tiles are of 128 positions (64 in double) and 64 or 128 rows, chunks of 64 bytes, pieces of 16.
PADDED = {"kernel_size": (3, 3, 3), "padding": ((1, 1),) * 3, "bias": True}
TILED = [
    make_case(name, 2, **changes)
    for name, changes in {
        # More than one tile of positions and of rows, and more chunks than slots.
        "tiles": {"batch": 3, "in_channels": 24, "out_channels": 72, "input_size": (9, 8), **PADDED},
        # Whole pieces everywhere, in both groups.
        "pieces": {"in_channels": 32, "out_channels": 48, "input_size": (8, 6), "groups": 2, **PADDED},
        # Pieces of channels, but no pieces of rows or positions.
        "odd_result": {"in_channels": 16, "out_channels": 9, "input_size": (5, 7), "stride": (2, 1), **PADDED},
        # Phases that share their columns, as many as fit and more.
        "patches": {"in_channels": 8, "out_channels": 8, "kernel_size": (2, 2), "stride": (2, 2), "input_size": (8, 6)},
        "wide_patches": {"kernel_size": (6, 5), "stride": (6, 5), "input_size": (12, 10), "bias": True},
    }.items()
]
VARIED = [
    case for case in CASES if case.name in ("all_at_once-1d", "all_at_once-2d", "asymmetric-3d", "empty_batch-2d")
]
