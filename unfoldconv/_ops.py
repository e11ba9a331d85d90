"""The compiled ops, and what torch must know of them without running them: the fake kernels.

Shapes are those of `csrc/binding/ops.cpp`. The rank is the length of the lists.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from ._binding import NAMESPACE
from ._geometry import Window, check_bytes, output_size, refusal

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

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_WITHOUT_3D_FORMAT = (torch.float64, *_INTEGERS)
_CONVOLVED = frozenset(
    (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, *_INTEGERS)
)
_SUMMED = _CONVOLVED | {torch.bool, torch.uint16, torch.uint32, torch.uint64}


def _fake(name: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    decorator: Any = torch.library.register_fake(f"{NAMESPACE}::{name}")
    return decorator  # type: ignore[no-any-return]


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result = result * size
    return result


def _result(sizes: Sequence[int], first: Tensor, second: Tensor) -> Tensor:
    """An empty result of a convolution, in the memory format of `empty_result` in csrc/binding/ops.cpp."""
    check_bytes("output", sizes, first.itemsize)
    channels_last = (torch.channels_last, torch.channels_last_3d)
    formats = [suggest_memory_format(operand) for operand in (first, second)]
    memory_format = next((f for f in formats if f in channels_last), torch.contiguous_format)
    if len(sizes) == 5 and first.dtype in _WITHOUT_3D_FORMAT:
        memory_format = torch.contiguous_format
    if first.device.type == "cuda" and first.dtype == torch.float64:
        memory_format = torch.contiguous_format
    return torch.empty(sizes, dtype=first.dtype, device=first.device, memory_format=memory_format)


def _check(rule_holds: bool | torch.SymBool, message: str) -> None:
    """What csrc/binding/checks.h demands of the real tensors, here of shapes that may be symbols."""
    if isinstance(rule_holds, bool):
        if not rule_holds:
            raise refusal(message)
    else:
        torch._check(rule_holds, lambda: message)


def _check_same_kind(name: str, first: Tensor, second: Tensor) -> None:
    _check(
        first.dtype == second.dtype,
        f"Input type ({first.dtype}) and {name} type ({second.dtype}) should be the same, but got two dtypes",
    )
    _check(
        first.device == second.device,
        f"input and {name} must be on the same device (expected all tensors to be on the same device), but got "
        f"{first.device} and {second.device}",
    )


def _check_operands(first: Tensor, second: Tensor, window: Window) -> None:
    dim = len(window.stride) + 2
    for operand in (first, second):
        _check(operand.dim() == dim, f"operands must have {dim} dimensions, but got shape {tuple(operand.shape)}")
    _check(
        first.dtype in _CONVOLVED,
        f"dtype must be a floating, complex or integer one of up to 64 bits for a convolution, but got {first.dtype}",
    )
    _check_same_kind("weight", first, second)


def _check_groups(groups: int, *channels: int) -> None:
    _check(groups > 0, f"groups must be positive (non-positive groups is not supported), but got {groups}")
    for number in channels:
        _check(number % groups == 0, f"channels must be divisible by groups ({groups}), but got {number}")


def _check_channels(input: Tensor, channels: int) -> None:
    _check(input.shape[1] == channels, f"input must have {channels} channels, but got {input.shape[1]} channels")


def _check_bias(bias: Tensor | None, input: Tensor, channels: int) -> None:
    if bias is None:
        return
    shape = tuple(bias.shape)
    message = f"bias must be 1-dimensional with {channels} elements, but got shape {shape}"
    _check(bias.dim() == 1, message)
    _check(bias.shape[0] == channels, message)
    _check_same_kind("bias", input, bias)


def _check_positions(grad_output: Tensor, size: Sequence[int], kernel_size: Sequence[int], window: Window) -> None:
    expected = output_size(size, kernel_size, window)
    message = f"grad_output must have the size {expected} of the output, but got {tuple(grad_output.shape[2:])}"
    for got, positions in zip(grad_output.shape[2:], expected, strict=True):
        _check(got == positions, message)


def _window(arguments: Sequence[Any]) -> Window:
    """The window that an op takes. Padding may be a symbol, and that is not asked for its sign."""
    window = Window(*map(tuple, arguments[:4]))
    for low in window.padding_low:
        _check(type(low) is not int or low >= 0, f"padding must be non-negative, but got {window.padding_low}")
    return window


@_fake("im2col")
def _(input: Tensor, kernel_size: Sequence[int], *arguments: Any) -> Tensor:
    window = _window(arguments)
    dim = len(kernel_size) + 2
    _check(input.dim() == dim, f"input must have {dim} dimensions, but got shape {tuple(input.shape)}")
    positions = output_size(input.shape[2:], kernel_size, window)
    batch, channels = input.shape[:2]
    check_bytes("columns", (batch, channels, *kernel_size, *positions), input.itemsize)
    return input.new_empty((batch, channels * _product(kernel_size), _product(positions)))


@_fake("col2im")
def _(columns: Tensor, input_size: Sequence[int], kernel_size: Sequence[int], *arguments: Any) -> Tensor:
    _check(columns.dim() == 3, f"columns must have 3 dimensions, but got shape {tuple(columns.shape)}")
    _check(columns.dtype in _SUMMED, f"dtype must be one that can be added, but got {columns.dtype}")
    rows, got = columns.shape[1:]
    positions, taps = _product(output_size(input_size, kernel_size, _window(arguments))), _product(kernel_size)
    _check(rows % taps == 0, f"columns must have a number of rows divisible by {taps}, but got {rows} rows")
    _check(got == positions, f"columns must have {positions} positions, but got {got}")
    sizes = (columns.shape[0], rows // taps, *input_size)
    check_bytes("output", sizes, columns.itemsize)
    return columns.new_empty(sizes)


@_fake("conv")
def _(input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    window, groups = _window(arguments), arguments[4]
    _check_operands(input, weight, window)
    _check_groups(groups, weight.shape[0])
    _check_channels(input, weight.shape[1] * groups)
    _check_bias(bias, input, weight.shape[0])
    positions = output_size(input.shape[2:], weight.shape[2:], window)
    return _result((input.shape[0], weight.shape[0], *positions), input, weight)


@_fake("conv_input_grad")
def _(grad_output: Tensor, weight: Tensor, bias: Tensor | None, input_size: Sequence[int], *arguments: Any) -> Tensor:
    window, groups = _window(arguments), arguments[4]
    _check_operands(grad_output, weight, window)
    _check_groups(groups, weight.shape[0])
    _check_channels(grad_output, weight.shape[0])
    _check_bias(bias, grad_output, weight.shape[1] * groups)
    _check_positions(grad_output, input_size, weight.shape[2:], window)
    return _result((grad_output.shape[0], weight.shape[1] * groups, *input_size), grad_output, weight)


@_fake("conv_weight_grad")
def _(grad_output: Tensor, input: Tensor, kernel_size: Sequence[int], *arguments: Any) -> Tensor:
    window, groups = _window(arguments), arguments[4]
    _check_operands(grad_output, input, window)
    _check_groups(groups, grad_output.shape[1], input.shape[1])
    batch = input.shape[0]
    message = f"grad_output must have the input's batch size {batch}, but got {grad_output.shape[0]}"
    _check(grad_output.shape[0] == batch, message)
    _check_positions(grad_output, input.shape[2:], kernel_size, window)
    return input.new_empty((grad_output.shape[1], input.shape[1] // groups, *kernel_size))
