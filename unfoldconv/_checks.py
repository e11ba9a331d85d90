"""What the ops refuse, for the fake kernels, whose tensors have no data and whose sizes may be symbols.

The twin of `csrc/binding/checks.h`: the same rules in the same order and words. Where a rule would have to ask for the
value of a symbol that the result does not depend on, it is not asked.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._geometry import Sizes, Window, check_positive, check_rank, refusal, span_of

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_CONVOLVED = frozenset(
    (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, *INTEGERS)
)
_SUMMED = _CONVOLVED | {torch.bool, torch.uint16, torch.uint32, torch.uint64}
_PLAIN = _SUMMED | {
    *(torch.complex32, torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    torch.float8_e8m0fnu,
}

CONV_WEIGHT = "(out_channels, in_channels / groups, *kernel_size)"
TRANSPOSED_WEIGHT = "(in_channels, out_channels / groups, *kernel_size)"

_NAMES_IN_CPP = {
    torch.uint8: "Byte",
    torch.int8: "Char",
    torch.int16: "Short",
    torch.int32: "Int",
    torch.int64: "Long",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.float32: "Float",
    torch.float64: "Double",
    torch.complex32: "ComplexHalf",
    torch.complex64: "ComplexFloat",
    torch.complex128: "ComplexDouble",
    torch.uint16: "UInt16",
    torch.uint32: "UInt32",
    torch.uint64: "UInt64",
}


def name_of(dtype: torch.dtype) -> str:
    """What C++ calls it."""
    return _NAMES_IN_CPP.get(dtype) or str(dtype).removeprefix("torch.").capitalize()


def check(rule_holds: bool | torch.SymBool, message: Callable[[], str]) -> None:
    """Refuses a call, with the rule and the value."""
    if isinstance(rule_holds, bool):
        if not rule_holds:
            raise refusal(message())
    else:
        torch._check(rule_holds, message)


def _fits(number: int) -> bool:
    """Whether a number fits 63 bits, as far as is known."""
    return type(number) is not int or number < 2**63


def product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result = result * size
    return result


def check_bytes(what: str, sizes: Sequence[int], itemsize: int) -> None:
    """The product of sizes, those of zero left out, must fit 63 bits."""
    known = math.prod([size or 1 for size in sizes if type(size) is int])
    check(known * itemsize < 2**63, lambda: f"{what} must take fewer than 2^63 bytes, but got size {tuple(sizes)}")


def window_of_op(kernel_size: Sequence[int], arguments: Sequence[Sequence[int]]) -> Window:
    """The window of an op, with one number per spatial axis each."""
    window = Window(*map(tuple, arguments))
    rank = len(kernel_size)
    check(1 <= rank <= 3, lambda: f"kernel_size must have 1, 2 or 3 axes, but got {rank}")
    for name, numbers in window._asdict().items():
        check_rank(name, numbers, rank)
    return window


def positions_of(size: Sequence[int], kernel_size: Sequence[int], window: Window) -> Sizes:
    """How often the window fits along each axis: `make_geometry` in C++."""
    positions = tuple([_positions_along(axis, length, kernel_size, window) for axis, length in enumerate(size)])
    check(
        _fits(product(kernel_size)) and _fits(product(positions)),
        lambda: f"taps and positions must fit 63 bits, but got kernel_size {tuple(kernel_size)}",
    )
    return positions


def _positions_along(axis: int, size: int, kernel_size: Sequence[int], window: Window) -> int:
    kernel, (stride, low, high, dilation) = kernel_size[axis], [numbers[axis] for numbers in window]
    check(type(size) is not int or size >= 0, lambda: f"size must be non-negative, but got {size} along axis {axis}")
    check_positive("kernel_size", kernel, kernel_size)
    check_positive("stride", stride, window.stride)
    check_positive("dilation", dilation, window.dilation)
    check(
        type(low) is not int or low >= 0,
        lambda: f"padding must be non-negative (negative padding is not supported), but got {window.padding_low}",
    )
    span, padded = span_of(kernel, dilation), size + low + high
    check(
        _fits(span),
        lambda: f"the kernel's span must fit 63 bits, but got kernel_size={kernel} with dilation={dilation}",
    )
    check(
        _fits(size + low) and _fits(padded),
        lambda: f"the padded size must fit 63 bits, but got {size} + {low} + {high}",
    )
    check(
        bool(span <= padded),
        lambda: (
            f"kernel must fit into the padded input (the output would be empty), but got span {span} "
            f"(kernel_size={kernel}, dilation={dilation}) for {size} + {low} + {high} = {padded} elements along axis "
            f"{axis}. Kernel size can't be greater than actual input size"
        ),
    )
    check(_fits(padded + stride), lambda: f"stride must leave positions that fit 63 bits, but got {stride}")
    return (padded - span) // stride + 1


def check_dim(name: str, tensor: Tensor, dim: int, shape: str) -> None:
    check(
        tensor.dim() == dim,
        lambda: f"{name} must have {dim} dimensions {shape}, but got shape {tuple(tensor.shape)}",
    )


def check_plain_dtype(tensor: Tensor) -> None:
    check(tensor.dtype in _PLAIN, lambda: f"dtype must be a plain number type, but got {name_of(tensor.dtype)}")


def check_summed(tensor: Tensor) -> None:
    check(tensor.dtype in _SUMMED, lambda: f"dtype must be one that can be added, but got {name_of(tensor.dtype)}")


def check_rows(columns: Tensor, kernel_size: Sequence[int]) -> None:
    """There is a row for each channel and tap."""
    rows = columns.shape[1]
    check(
        rows % product(kernel_size) == 0,
        lambda: (
            "columns must have a number of rows divisible by the product of kernel_size (expected size of input's "
            f"dimension 1 to be divisible by the product of kernel_size), but got {rows} rows and kernel_size "
            f"{tuple(kernel_size)}"
        ),
    )


def check_column_positions(
    columns: Tensor, positions: int, size: Sequence[int], kernel_size: Sequence[int], window: Window
) -> None:
    """There is a column for each position."""
    check(
        columns.shape[2] == positions,
        lambda: (
            f"columns must have {positions} positions for output_size {tuple(size)}, kernel_size {tuple(kernel_size)}, "
            f"dilation {window.dilation}, padding {window.padding_low} and {window.padding_high}, stride "
            f"{window.stride} (expected size of input's dimension 2 to match the calculated number of sliding blocks "
            f"{positions}), but got {columns.shape[2]}"
        ),
    )


def check_operands(name: str, first: Tensor, second_name: str, second: Tensor, rank: int) -> None:
    """What the three convolutions demand of their operands, the first an input or a gradient of the output."""
    check_dim(name, first, rank + 2, "(batch, channels, *size)")
    check_dim(second_name, second, rank + 2, f"of a {rank}-D convolution")
    check(
        first.dtype in _CONVOLVED,
        lambda: (
            "dtype must be a floating, complex or integer one of up to 64 bits for a convolution, but got "
            f"{name_of(first.dtype)}"
        ),
    )
    check_same_kind("Input", first, second_name, second)


def check_same_kind(first_name: str, first: Tensor, second_name: str, second: Tensor) -> None:
    check(
        first.device == second.device,
        lambda: (
            f"{first_name} and {second_name} must be on the same device (expected all tensors to be on the same "
            f"device), but got {first.device.type} and {second.device.type}"
        ),
    )
    check(
        first.dtype == second.dtype,
        lambda: (
            f"{first_name} type ({name_of(first.dtype)}) and {second_name} type ({name_of(second.dtype)}) should be "
            "the same, but got two dtypes"
        ),
    )


def check_groups(name: str, channels: int, groups: int) -> None:
    """Groups must divide both channel counts; `name` says where the number of channels was read."""
    check(groups > 0, lambda: f"groups must be positive (non-positive groups is not supported), but got {groups}")
    check(channels % groups == 0, lambda: f"{name} must be divisible by groups ({groups}), but got {channels}")


def channels_of_groups(channels: int, groups: int) -> int:
    """Those of all groups, for those of one."""
    check(_fits(channels * groups), lambda: f"channels must fit 63 bits, but got {channels} * {groups}")
    return channels * groups


def check_channels(input: Tensor, weight: Tensor, channels: int, given: str) -> None:
    """The input must have as many channels as the weight says; `given` is what they were computed from."""
    check(
        input.shape[1] == channels,
        lambda: (
            f"input must have {channels} channels (given {given}, weight of size {tuple(weight.shape)}, expected "
            f"input{tuple(input.shape)} to have {channels} channels), but got {input.shape[1]} channels instead"
        ),
    )


def check_bias(bias: Tensor | None, input: Tensor, channels: int) -> None:
    if bias is None:
        return
    for rule_holds in (bias.dim() == 1, bias.dim() != 1 or bias.shape[0] == channels):
        check(
            rule_holds,
            lambda: (
                f"bias must be 1-dimensional with {channels} elements (expected bias to be 1-dimensional with "
                f"{channels} elements), but got shape {tuple(bias.shape)}"
            ),
        )
    check_same_kind("Input", input, "bias", bias)


def check_batch(grad_output: Tensor, input: Tensor) -> None:
    check(
        grad_output.shape[0] == input.shape[0],
        lambda: f"grad_output must have the input's batch size {input.shape[0]}, but got {grad_output.shape[0]}",
    )


def check_positions(grad_output: Tensor, positions: Sizes) -> None:
    for got, expected in zip(grad_output.shape[2:], positions, strict=True):
        check(
            got == expected,
            lambda: (
                f"grad_output must have the size of the convolution's output, {positions}, but got "
                f"{tuple(grad_output.shape)}"
            ),
        )
