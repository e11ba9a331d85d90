"""The promise about memory: a convolution takes no more than the workspace limit beyond operands, result and weight."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import unfoldconv as uc
from benchmarks.memory import peak_extra_bytes

MEGABYTE = 2**20
ERROR = 2 * MEGABYTE  # of the measurement, which counts pages of the whole process


@pytest.mark.parametrize("name", ["conv", "conv_input_grad", "conv_weight_grad"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_workspace_is_bounded(
    name: str, stride: int, dtype: torch.dtype, device: torch.device, threads: Callable[[int], None]
) -> None:
    """The unfolded matrix would take ten times the limit and more."""
    threads(2)
    window = ([stride] * 2, [1, 1], [1, 1], [1, 1])
    x = torch.randn(4, 32, 128, 128, device=device).to(dtype)
    w = torch.randn(32, 32, 3, 3, device=device).to(dtype)
    y = torch.ops.unfoldconv.conv(x, w, None, *window, 1)
    calls: dict[str, Callable[[], Tensor]] = {
        "conv": lambda: torch.ops.unfoldconv.conv(x, w, None, *window, 1),
        "conv_input_grad": lambda: torch.ops.unfoldconv.conv_input_grad(y, w, None, [128, 128], *window, 1),
        "conv_weight_grad": lambda: torch.ops.unfoldconv.conv_weight_grad(y, x, [3, 3], *window, 1),
    }
    columns_bytes = 4 * 288 * y.shape[2] * y.shape[3] * 4
    packed_bytes = w.numel() * 4
    for limit in (MEGABYTE // 2, None):
        with uc.workspace_limit(limit or 2 * MEGABYTE):
            calls[name]()
            extra = peak_extra_bytes(calls[name], device)
        if extra is None:
            pytest.skip("the peak of resident memory cannot be measured here")
        allowed = 2 * (limit or 2 * MEGABYTE) + packed_bytes + ERROR
        assert extra <= allowed < columns_bytes


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
