"""The compiled ops, and what torch must know of them without running them: the fake kernels.

Shapes are those of `csrc/ops.cpp`. The rank is the length of the lists.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from ._binding import NAMESPACE
from ._geometry import GeometryError, Window, output_size

_namespace = getattr(torch.ops, NAMESPACE)

im2col: Callable[..., Tensor] = _namespace.im2col.default
col2im: Callable[..., Tensor] = _namespace.col2im.default
conv: Callable[..., Tensor] = _namespace.conv.default
conv_input_grad: Callable[..., Tensor] = _namespace.conv_input_grad.default
conv_weight_grad: Callable[..., Tensor] = _namespace.conv_weight_grad.default
set_workspace_limit: Callable[[int, int], None] = _namespace.set_workspace_limit.default
set_tuning: Callable[[bool], None] = _namespace.set_tuning.default
get_tuning: Callable[[], bool] = _namespace.get_tuning.default
get_workspace_limit: Callable[[], list[int]] = _namespace.get_workspace_limit.default

_WITHOUT_3D_FORMAT = (torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _fake(name: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    decorator: Any = torch.library.register_fake(f"{NAMESPACE}::{name}")
    return decorator  # type: ignore[no-any-return]


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result = result * size
    return result


def _result(sizes: Sequence[int], first: Tensor, second: Tensor) -> Tensor:
    """An empty result of a convolution, in the memory format of `empty_result` in csrc/ops.cpp."""
    channels_last = (torch.channels_last, torch.channels_last_3d)
    formats = [suggest_memory_format(operand) for operand in (first, second)]
    memory_format = next((f for f in formats if f in channels_last), torch.contiguous_format)
    if len(sizes) == 5 and first.dtype in _WITHOUT_3D_FORMAT:
        memory_format = torch.contiguous_format
    if first.device.type == "cuda" and first.dtype == torch.float64:
        memory_format = torch.contiguous_format
    return torch.empty(sizes, dtype=first.dtype, device=first.device, memory_format=memory_format)


def _same_kind(first: Tensor, second: Tensor) -> None:
    """What csrc/checks.h demands of two operands, as far as a compiled graph can break it."""
    if first.dtype != second.dtype:
        raise GeometryError(f"Input type ({first.dtype}) and weight type ({second.dtype}) should be the same")
    if first.device != second.device:
        raise GeometryError(
            f"input and weight must be on the same device (expected all tensors to be on the same device), but got "
            f"{first.device} and {second.device}"
        )


def _same_positions(grad_output: Tensor, size: Sequence[int], kernel_size: Sequence[int], window: Window) -> None:
    expected = output_size(size, kernel_size, window)
    message = f"grad_output must have the size {expected} of the output, but got {tuple(grad_output.shape[2:])}"
    for got, positions in zip(grad_output.shape[2:], expected, strict=True):
        torch._check(got == positions, lambda: message)


@_fake("im2col")
def _(input: Tensor, kernel_size: Sequence[int], *window: Sequence[int]) -> Tensor:
    positions = output_size(input.shape[2:], kernel_size, Window(*map(tuple, window)))
    batch, channels = input.shape[:2]
    return input.new_empty((batch, channels * _product(kernel_size), _product(positions)))


@_fake("col2im")
def _(columns: Tensor, input_size: Sequence[int], kernel_size: Sequence[int], *window: Sequence[int]) -> Tensor:
    positions = _product(output_size(input_size, kernel_size, Window(*map(tuple, window))))
    taps = _product(kernel_size)
    torch._check(columns.shape[1] % taps == 0, lambda: f"columns must have a multiple of {taps} rows")
    torch._check(columns.shape[2] == positions, lambda: f"columns must have {positions} positions")
    return columns.new_empty((columns.shape[0], columns.shape[1] // taps, *input_size))


@_fake("conv")
def _(input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    window, groups = Window(*map(tuple, arguments[:4])), arguments[4]
    _same_kind(input, weight)
    torch._check(
        input.shape[1] == weight.shape[1] * groups,
        lambda: f"input must have {weight.shape[1] * groups} channels, but got {input.shape[1]}",
    )
    positions = output_size(input.shape[2:], weight.shape[2:], window)
    return _result((input.shape[0], weight.shape[0], *positions), input, weight)


@_fake("conv_input_grad")
def _(grad_output: Tensor, weight: Tensor, bias: Tensor | None, input_size: Sequence[int], *arguments: Any) -> Tensor:
    window, groups = Window(*map(tuple, arguments[:4])), arguments[4]
    _same_kind(grad_output, weight)
    _same_positions(grad_output, input_size, weight.shape[2:], window)
    return _result((grad_output.shape[0], weight.shape[1] * groups, *input_size), grad_output, weight)


@_fake("conv_weight_grad")
def _(grad_output: Tensor, input: Tensor, kernel_size: Sequence[int], *arguments: Any) -> Tensor:
    window, groups = Window(*map(tuple, arguments[:4])), arguments[4]
    _same_kind(grad_output, input)
    _same_positions(grad_output, input.shape[2:], kernel_size, window)
    return input.new_empty((grad_output.shape[1], input.shape[1] // groups, *kernel_size))
