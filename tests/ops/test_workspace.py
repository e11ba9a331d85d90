"""The promise about memory: a convolution takes no more than the workspace limit beyond operands, result and weight."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import unfoldconv as uc
from benchmarks.memory import peak_extra_bytes
from cases import channels_last

MEGABYTE = 2**20
ERROR = 2 * MEGABYTE  # of the measurement, which counts pages of the whole process


# Input, weight, stride, padding and groups.
PROBLEMS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int, int]] = {
    "dense": ((4, 32, 128, 128), (32, 32, 3, 3), 1, 1, 1),
    "strided": ((8, 32, 128, 128), (32, 32, 3, 3), 2, 1, 1),
    "stem": ((8, 3, 160, 160), (32, 3, 7, 7), 2, 3, 1),
    "long_sums": ((2, 320, 48, 48), (40, 320, 3, 3), 1, 1, 1),
    "grouped": ((4, 64, 96, 96), (64, 8, 3, 3), 1, 1, 8),
    "depthwise": ((4, 64, 96, 96), (64, 1, 5, 5), 1, 2, 64),
}


@pytest.mark.parametrize("arrange", [Tensor.contiguous, channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", ["conv", "conv_input_grad", "conv_weight_grad"])
def test_workspace_is_bounded(
    name: str,
    problem: str,
    dtype: torch.dtype,
    arrange: Callable[[Tensor], Tensor],
    device: torch.device,
    threads: Callable[[int], None],
) -> None:
    """The unfolded matrix would take a multiple of the limit."""
    threads(2)
    input_shape, weight_shape, stride, padding, groups = PROBLEMS[problem]
    kernel, size = list(weight_shape[2:]), list(input_shape[2:])
    window = ([stride] * 2, [padding] * 2, [padding] * 2, [1, 1])
    ops = torch.ops.unfoldconv
    x = arrange(torch.randn(input_shape, device=device).to(dtype))
    w = arrange(torch.randn(weight_shape, device=device).to(dtype))
    y = ops.conv(x, w, None, *window, groups)
    calls: dict[str, Callable[[], Tensor]] = {
        "conv": lambda: ops.conv(x, w, None, *window, groups),
        "conv_input_grad": lambda: ops.conv_input_grad(y, w, None, size, *window, groups),
        "conv_weight_grad": lambda: ops.conv_weight_grad(y, x, kernel, *window, groups),
    }
    computed_size = max(dtype.itemsize, 4)  # 16-bit types are computed in float32
    columns_bytes = math.prod(y.shape[2:]) * x.shape[0] * x.shape[1] * math.prod(kernel) * computed_size
    for limit in (2 * MEGABYTE, MEGABYTE // 2, MEGABYTE // 16):
        with uc.workspace_limit(limit):
            for _ in range(3):  # so that each thread has had a task, and its part of the heap has grown
                calls[name]()
            extra = peak_extra_bytes(calls[name], device)
        if extra is None:
            pytest.skip("the peak of resident memory cannot be measured here")
        allowed = 2 * limit + w.numel() * computed_size + ERROR
        assert extra <= allowed < columns_bytes, f"limit {limit}"


def test_sums_of_the_weight_gradient_count(device: torch.device) -> None:
    """The partial sums of a batch that is split for the sake of threads lie within the limit too."""
    limit = 16 * MEGABYTE
    x = torch.randn(14, 256, 32, 32, device=device)
    with uc.workspace_limit(limit):
        arguments = (x, x, [3, 3], [1, 1], [1, 1], [1, 1], [1, 1], 1)
        torch.ops.unfoldconv.conv_weight_grad(*arguments)
        extra = peak_extra_bytes(lambda: torch.ops.unfoldconv.conv_weight_grad(*arguments), device)
    if extra is None:
        pytest.skip("the peak of resident memory cannot be measured here")
    assert extra <= limit + ERROR
