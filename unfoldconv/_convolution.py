"""Convolution and transposed convolution. Shapes and arguments are told at `conv2d` and `conv_transpose2d`."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _conv_ops
from ._calls import batched, check_tensor, public
from ._checks import CONV_WEIGHT, TRANSPOSED_WEIGHT
from ._geometry import (
    GeometryError,
    IntOrTuple,
    Padding,
    as_int,
    plain_window,
    transposed_output_size,
    transposed_window_of,
    window_of,
)


def _conv(
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrTuple,
    padding: Padding,
    dilation: IntOrTuple,
    groups: int,
) -> Tensor:
    input, weight, bias, unbatched = _operands(rank, input, weight, bias, CONV_WEIGHT)
    window = plain_window(rank, stride, padding, dilation)
    if window is None:
        window = window_of(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    if type(groups) is not int:
        groups = as_int("groups", groups)
    conv = _conv_ops.conv
    if input.dtype is torch.complex32:
        conv = _through_complex64(conv)
    output = conv(input, weight, bias, *window, groups)
    return output.squeeze(0) if unbatched else output


def _operands(
    rank: int, input: Tensor, weight: Tensor, bias: Tensor | None, shape_of_weight: str
) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """The operands with a batch and in the dtype of torch.autocast, and whether there was no batch."""
    input, unbatched = batched("input", input, rank + 2)
    if not isinstance(weight, Tensor):
        check_tensor("weight", weight)
    if bias is not None:
        check_tensor("bias", bias)
    if weight.dim() != rank + 2:
        raise GeometryError(
            f"weight must have {rank + 2} dimensions {shape_of_weight}, but got shape {tuple(weight.shape)}"
        )
    if not torch._C._is_any_autocast_enabled():
        return input, weight, bias, unbatched
    device = input.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        input, weight = _autocast(input, dtype), _autocast(weight, dtype)
        bias = None if bias is None else _autocast(bias, dtype)
    return input, weight, bias, unbatched


def _through_complex64(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The op for complex32, which torch convolves although it has no matrix product of it."""

    def convolve(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        operands = (input, weight, bias)
        if any(operand is not None and operand.dtype != torch.complex32 for operand in operands):
            return op(*operands, *rest)  # which refuses them
        wide = [None if operand is None else operand.to(torch.complex64) for operand in operands]
        return op(*wide, *rest).to(torch.complex32)

    return convolve


def _autocast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 stays as it is, as in torch."""
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


@public
def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """1-D convolution (cross-correlation), see `conv2d`: input (N, C, L), weight (O, C / groups, K)."""
    return _conv(1, input, weight, bias, stride, padding, dilation, groups)


@public
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """2-D convolution (cross-correlation), the operation of `torch.nn.functional.conv2d`.

    Args:
        input: Images, shape (N, C, H, W) or (C, H, W).
        weight: Kernels, shape (O, C / groups, *kernel_size), of the input's dtype and device.
        bias: One number per output channel, shape (O,), or None. Default: None.
        stride: Elements from one position to the next, an int or one per axis. Default: 1.
        padding: Zeros around the image: an int, one per axis, a (low, high) pair per axis, `'valid'` for none, or
            `'same'` for ceil(size / stride) positions along each axis. Default: 0.
        dilation: Elements from one tap of the kernel to the next, an int or one per axis. Default: 1.
        groups: Divides input and output channels into groups that do not see each other. Default: 1.

    Returns:
        Shape (N, O, *positions), positions = (size + padding_low + padding_high - dilation * (kernel - 1) - 1) //
        stride + 1; channels_last where the input or the weight is.

    Raises:
        GeometryError: if sizes, groups, dtypes or devices do not fit together, or the output would be empty.
        TypeError: if an argument is of the wrong type.

    Example:
        >>> import torch, unfoldconv as uc
        >>> uc.conv2d(torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3), stride=2, padding="same").shape
        torch.Size([1, 4, 4, 4])
    """
    return _conv(2, input, weight, bias, stride, padding, dilation, groups)


@public
def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """3-D convolution, see `conv2d`: input (N, C, D, H, W), weight (O, C / groups, *K) -> (N, O, *positions)."""
    return _conv(3, input, weight, bias, stride, padding, dilation, groups)


def _conv_transpose(
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrTuple,
    padding: Padding,
    output_padding: IntOrTuple,
    groups: int,
    dilation: IntOrTuple,
) -> Tensor:
    input, weight, bias, unbatched = _operands(rank, input, weight, bias, TRANSPOSED_WEIGHT)
    kernel_size = weight.shape[2:]
    window, extra = transposed_window_of(kernel_size, stride, padding, output_padding, dilation)
    size = transposed_output_size(input.shape[2:], kernel_size, window, extra)
    # The op takes the size of the result and accepts what a stride leaves over; an output padding beyond that (it may
    # reach the dilation) is image that no window reads, a negative padding.
    if any(map(operator.ge, extra, window.stride)):
        window = window._replace(padding_high=tuple(map(operator.sub, window.padding_high, extra)))
    conv = _conv_ops.conv_input_grad
    if input.dtype is torch.complex32:
        conv = _through_complex64(conv)
    output = conv(input, weight, bias, size, *window, as_int("groups", groups))
    return output.squeeze(0) if unbatched else output


@public
def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    output_padding: IntOrTuple = 0,
    groups: int = 1,
    dilation: IntOrTuple = 1,
) -> Tensor:
    """1-D transposed convolution, see `conv_transpose2d`: input (N, C, L), weight (C, O / groups, K)."""
    return _conv_transpose(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


@public
def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    output_padding: IntOrTuple = 0,
    groups: int = 1,
    dilation: IntOrTuple = 1,
) -> Tensor:
    """2-D transposed convolution, the operation of `torch.nn.functional.conv_transpose2d`.

    It is the gradient of `conv2d` in its input: each input element adds a scaled kernel to the output.

    Args:
        input: Images, shape (N, C, H, W) or (C, H, W).
        weight: Kernels, shape (C, O / groups, *kernel_size).
        bias: One number per output channel, shape (O,), or None. Default: None.
        stride: Output elements from one kernel to the next, an int or one per axis. Default: 1.
        padding: Elements cut from the full output: an int, one per axis, a (low, high) pair per axis, `'valid'` for
            none, or `'same'` for size * stride elements along each axis. Default: 0.
        output_padding: Elements appended at the high end, less than stride or dilation. Default: 0.
        groups: As in `conv2d`. Default: 1.
        dilation: As in `conv2d`. Default: 1.

    Returns:
        Shape (N, O, *sizes), sizes = (size - 1) * stride - padding_low - padding_high + dilation * (kernel - 1) + 1 +
        output_padding.

    Raises:
        GeometryError: if sizes, groups, dtypes or devices do not fit together, or the output would be empty.
        TypeError: if an argument is of the wrong type.

    Example:
        >>> import torch, unfoldconv as uc
        >>> uc.conv_transpose2d(torch.ones(1, 4, 5, 5), torch.ones(4, 3, 3, 3), stride=2, padding="same").shape
        torch.Size([1, 3, 10, 10])
    """
    return _conv_transpose(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


@public
def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    output_padding: IntOrTuple = 0,
    groups: int = 1,
    dilation: IntOrTuple = 1,
) -> Tensor:
    """3-D transposed convolution, see `conv_transpose2d`: input (N, C, D, H, W), weight (C, O / groups, *K)."""
    return _conv_transpose(3, input, weight, bias, stride, padding, output_padding, groups, dilation)
