"""Patches: unfold, fold and the patches of a transposed convolution."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from . import _patch_ops
from ._calls import batched, public
from ._checks import check_bytes
from ._geometry import (
    GeometryError,
    IntOrTuple,
    Padding,
    Sizes,
    check_window,
    per_axis,
    transposed_output_size,
    transposed_window_of,
    window_of,
)

Reduction: TypeAlias = Literal["sum", "mean"]


def _rank_of(*arguments: object) -> int:
    """The rank that the first tuple tells by its length; 2 where there are only ints, as in torch."""
    for argument in arguments:
        if isinstance(argument, (tuple, list)):
            if not 1 <= len(argument) <= 3:
                raise GeometryError(f"kernel_size must have 1, 2 or 3 axes, but got {argument}")
            return len(argument)
    return 2


def _unfold(
    rank: int, input: Tensor, kernel_size: IntOrTuple, dilation: IntOrTuple, padding: Padding, stride: IntOrTuple
) -> Tensor:
    input, unbatched = batched("input", input, rank + 2)
    kernel = per_axis("kernel_size", kernel_size, rank)
    window = window_of(input.shape[2:], kernel, stride, padding, dilation)
    columns = _patch_ops.im2col(input, kernel, *window)
    return columns.squeeze(0) if unbatched else columns


@public
def unfold(
    input: Tensor,
    kernel_size: IntOrTuple,
    dilation: IntOrTuple = 1,
    padding: Padding = 0,
    stride: IntOrTuple = 1,
) -> Tensor:
    """The patches under a sliding window (im2col), the operation of `torch.nn.functional.unfold`, N-dimensional.

    columns[n, c * prod(kernel_size) + tap, p] = input[n, c, p * stride - padding_low + tap * dilation], 0 outside.

    Args:
        input: Images of any dtype, shape (N, C, *size) or (C, *size).
        kernel_size: The window. A tuple of 1, 2 or 3 numbers tells the rank; an int means 2-D, as in torch.
        dilation: Elements from one tap to the next, an int or one per axis. Default: 1.
        padding: As in `conv2d`. Default: 0.
        stride: Elements from one position to the next, an int or one per axis. Default: 1.

    Returns:
        Shape (N, C * prod(kernel_size), prod(positions)), contiguous.

    Raises:
        GeometryError: if the window does not fit.
        TypeError: if an argument is of the wrong type.

    Example:
        >>> import torch, unfoldconv as uc
        >>> uc.unfold(torch.arange(5).reshape(1, 1, 5), kernel_size=(3,))
        tensor([[[0, 1, 2],
                 [1, 2, 3],
                 [2, 3, 4]]])
    """
    return _unfold(_rank_of(kernel_size), input, kernel_size, dilation, padding, stride)


@public
def unfold1d(
    input: Tensor, kernel_size: IntOrTuple, dilation: IntOrTuple = 1, padding: Padding = 0, stride: IntOrTuple = 1
) -> Tensor:
    """`unfold` of signals (N, C, L): see there for arguments, errors and an example."""
    return _unfold(1, input, kernel_size, dilation, padding, stride)


@public
def unfold2d(
    input: Tensor, kernel_size: IntOrTuple, dilation: IntOrTuple = 1, padding: Padding = 0, stride: IntOrTuple = 1
) -> Tensor:
    """`unfold` of images (N, C, H, W): see there for arguments, errors and an example."""
    return _unfold(2, input, kernel_size, dilation, padding, stride)


@public
def unfold3d(
    input: Tensor, kernel_size: IntOrTuple, dilation: IntOrTuple = 1, padding: Padding = 0, stride: IntOrTuple = 1
) -> Tensor:
    """`unfold` of volumes (N, C, D, H, W): see there for arguments, errors and an example."""
    return _unfold(3, input, kernel_size, dilation, padding, stride)


def _fold(
    rank: int,
    input: Tensor,
    output_size: IntOrTuple,
    kernel_size: IntOrTuple,
    dilation: IntOrTuple,
    padding: Padding,
    stride: IntOrTuple,
    reduction: Reduction,
) -> Tensor:
    columns, unbatched = batched("input", input, 3)
    size = per_axis("output_size", output_size, rank)
    kernel = per_axis("kernel_size", kernel_size, rank)
    window = window_of(size, kernel, stride, padding, dilation)
    if reduction not in ("sum", "mean"):
        raise GeometryError(f"reduction must be 'sum' or 'mean', but got {reduction!r}")
    if reduction == "mean" and not (columns.is_floating_point() or columns.is_complex()):
        raise GeometryError(f"reduction 'mean' must have a floating or complex dtype, but got {columns.dtype}")
    image = _patch_ops.col2im(columns, size, kernel, *window)
    if reduction == "mean":
        image = _divided_by_cover(image, size, kernel, *window)
    return image.squeeze(0) if unbatched else image


def _divided_by_cover(image: Tensor, size: Sizes, kernel: Sizes, *window: Sizes) -> Tensor:
    """Each element divided by how many patches hold it; what no patch holds stays 0."""
    real = torch.float64 if image.dtype in (torch.float64, torch.complex128) else torch.float32
    everywhere = torch.ones((1, 1, *size), dtype=real, device=image.device)
    cover = _patch_ops.col2im(_patch_ops.im2col(everywhere, kernel, *window), size, kernel, *window)
    return (image / cover.clamp(min=1)).to(image.dtype)


@public
def fold(
    input: Tensor,
    output_size: IntOrTuple,
    kernel_size: IntOrTuple,
    dilation: IntOrTuple = 1,
    padding: Padding = 0,
    stride: IntOrTuple = 1,
    reduction: Reduction = "sum",
) -> Tensor:
    """Sums patches back into an image (col2im), the operation of `torch.nn.functional.fold`, N-dimensional.

    It is the adjoint of `unfold`. With reduction='mean' it is the inverse: fold(unfold(x)) = x wherever a patch was.

    Args:
        input: Patches of any dtype that adds (bool by "or"), shape (N, C * prod(kernel_size), prod(positions)).
        output_size: Spatial size of the image, an int or one per axis.
        kernel_size: The window. The first tuple among kernel_size and output_size tells the rank; without one it is 2.
        dilation: As in `unfold`. Default: 1.
        padding: As in `unfold`. Default: 0.
        stride: As in `unfold`. Default: 1.
        reduction: `'sum'`, or `'mean'` to divide each element by the number of patches that cover it. Default: 'sum'.

    Returns:
        Shape (N, C, *output_size), contiguous. 16-bit floats are summed in float32; the result is deterministic.

    Raises:
        GeometryError: if rows and positions are not those of `unfold` with these arguments.
        TypeError: if an argument is of the wrong type.

    Example:
        >>> import torch, unfoldconv as uc
        >>> uc.fold(torch.ones(1, 3, 3), output_size=(5,), kernel_size=(3,))
        tensor([[[1., 2., 3., 2., 1.]]])
    """
    rank = _rank_of(kernel_size, output_size)
    return _fold(rank, input, output_size, kernel_size, dilation, padding, stride, reduction)


@public
def fold1d(
    input: Tensor,
    output_size: IntOrTuple,
    kernel_size: IntOrTuple,
    dilation: IntOrTuple = 1,
    padding: Padding = 0,
    stride: IntOrTuple = 1,
    reduction: Reduction = "sum",
) -> Tensor:
    """`fold` into signals (N, C, L): see there for arguments, errors and an example."""
    return _fold(1, input, output_size, kernel_size, dilation, padding, stride, reduction)


@public
def fold2d(
    input: Tensor,
    output_size: IntOrTuple,
    kernel_size: IntOrTuple,
    dilation: IntOrTuple = 1,
    padding: Padding = 0,
    stride: IntOrTuple = 1,
    reduction: Reduction = "sum",
) -> Tensor:
    """`fold` into images (N, C, H, W): see there for arguments, errors and an example."""
    return _fold(2, input, output_size, kernel_size, dilation, padding, stride, reduction)


@public
def fold3d(
    input: Tensor,
    output_size: IntOrTuple,
    kernel_size: IntOrTuple,
    dilation: IntOrTuple = 1,
    padding: Padding = 0,
    stride: IntOrTuple = 1,
    reduction: Reduction = "sum",
) -> Tensor:
    """`fold` into volumes (N, C, D, H, W): see there for arguments, errors and an example."""
    return _fold(3, input, output_size, kernel_size, dilation, padding, stride, reduction)


_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def _unfold_transpose(
    rank: int,
    input: Tensor,
    kernel_size: IntOrTuple,
    dilation: IntOrTuple,
    padding: Padding,
    stride: IntOrTuple,
    output_padding: IntOrTuple,
) -> Tensor:
    input, unbatched = batched("input", input, rank + 2)
    if input.dtype in _SIGNED:  # torch cannot flip unsigned integers; the bits are the same
        signed = input.view(_SIGNED[input.dtype])
        columns = _unfold_transpose(rank, signed, kernel_size, dilation, padding, stride, output_padding)
        columns = columns.view(input.dtype)
        return columns.squeeze(0) if unbatched else columns
    kernel = per_axis("kernel_size", kernel_size, rank)
    window, extra = transposed_window_of(kernel, stride, padding, output_padding, dilation)
    check_window(kernel, window)
    size = transposed_output_size(input.shape[2:], kernel, window, extra)
    numbers = (*input.shape[:2], *kernel, *size)
    check_bytes("columns", numbers, input.itemsize)
    known = all(type(n) is int for n in numbers)
    # Output element o reads (o + padding_low - tap * dilation) / stride: over the image with stride - 1 zeros between
    # its elements that is a window of stride 1 whose taps run backwards from o + padding_low. With the image back to
    # front the taps run forwards, and the positions backwards.
    spaced = input.flip(tuple(range(2, 2 + rank)))
    lows, highs = [], []
    for axis in range(rank):
        dim, stride, reach = 2 + axis, window.stride[axis], window.dilation[axis] * (kernel[axis] - 1)
        low, length = reach - window.padding_high[axis] + extra[axis], spaced.shape[dim]
        if known:  # elements that no output reads would be spaced out for nothing, however far
            first = max(0, -((reach - window.padding_low[axis]) // stride))
            end = max(first, min(length, (size[axis] - 1 + window.padding_low[axis]) // stride + 1))
            low = low + (length - end) * stride if first < end else 0
            spaced = spaced.narrow(dim, max(0, length - end), end - first)
            length = end - first
        if stride > 1 and length > 1:
            behind = [0, 0] * (spaced.dim() - dim - 1)
            spaced = torch.nn.functional.pad(spaced.unsqueeze(dim + 1), [*behind, 0, stride - 1])
            length = (length - 1) * stride + 1
            spaced = spaced.flatten(dim, dim + 1).narrow(dim, 0, length)
        high = size[axis] + reach - low - length
        if low < 0 or high < 0:  # the window leaves out the ends of the image
            spaced = spaced.narrow(dim, max(-low, 0), length + min(low, 0) + min(high, 0))
        lows.append(max(low, 0))
        highs.append(max(high, 0))
    columns = _patch_ops.im2col(spaced, kernel, (1,) * rank, tuple(lows), tuple(highs), window.dilation).flip(2)
    return columns.squeeze(0) if unbatched else columns


@public
def unfold_transpose(
    input: Tensor,
    kernel_size: IntOrTuple,
    dilation: IntOrTuple = 1,
    padding: Padding = 0,
    stride: IntOrTuple = 1,
    output_padding: IntOrTuple = 0,
) -> Tensor:
    """The patches of a transposed convolution: what each output element of `conv_transpose2d` sums over.

    columns[n, c * prod(kernel_size) + tap, o] = input[n, c, (o + padding_low - tap * dilation) / stride] where that
    division leaves no rest and lies inside the input, else 0. So a transposed convolution with weight (C, O, *K) is
    one matrix product, weight.transpose(0, 1).reshape(O, C * prod(K)) @ columns.

    Args:
        input: Images of any dtype that adds, shape (N, C, *size) or (C, *size).
        kernel_size: As in `unfold`.
        dilation: As in `conv_transpose2d`. Default: 1.
        padding: As in `conv_transpose2d`. Default: 0.
        stride: As in `conv_transpose2d`. Default: 1.
        output_padding: As in `conv_transpose2d`. Default: 0.

    Returns:
        Shape (N, C * prod(kernel_size), prod(output sizes)).

    Raises:
        GeometryError: if the output would be empty.
        TypeError: if an argument is of the wrong type.

    Example:
        >>> import torch, unfoldconv as uc
        >>> uc.unfold_transpose(torch.tensor([[[1, 2]]]), kernel_size=(2,), stride=2)
        tensor([[[1, 0, 2, 0],
                 [0, 1, 0, 2]]])
    """
    rank = _rank_of(kernel_size)
    return _unfold_transpose(rank, input, kernel_size, dilation, padding, stride, output_padding)


@public
def unfold_transpose1d(
    input: Tensor,
    kernel_size: IntOrTuple,
    dilation: IntOrTuple = 1,
    padding: Padding = 0,
    stride: IntOrTuple = 1,
    output_padding: IntOrTuple = 0,
) -> Tensor:
    """`unfold_transpose` of signals (N, C, L): see there for arguments, errors and an example."""
    return _unfold_transpose(1, input, kernel_size, dilation, padding, stride, output_padding)


@public
def unfold_transpose2d(
    input: Tensor,
    kernel_size: IntOrTuple,
    dilation: IntOrTuple = 1,
    padding: Padding = 0,
    stride: IntOrTuple = 1,
    output_padding: IntOrTuple = 0,
) -> Tensor:
    """`unfold_transpose` of images (N, C, H, W): see there for arguments, errors and an example."""
    return _unfold_transpose(2, input, kernel_size, dilation, padding, stride, output_padding)


@public
def unfold_transpose3d(
    input: Tensor,
    kernel_size: IntOrTuple,
    dilation: IntOrTuple = 1,
    padding: Padding = 0,
    stride: IntOrTuple = 1,
    output_padding: IntOrTuple = 0,
) -> Tensor:
    """`unfold_transpose` of volumes (N, C, D, H, W): see there for arguments, errors and an example."""
    return _unfold_transpose(3, input, kernel_size, dilation, padding, stride, output_padding)
