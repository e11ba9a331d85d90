"""Convolution by unfolding in plain PyTorch: short, slow, and what every test compares with.

Shapes, for R spatial axes (R = the length of ``kernel_size`` or ``weight.dim() - 2``):

    input    (batch, in_channels, *input_size)
    weight   (out_channels, in_channels / groups, *kernel_size)
    columns  (batch, channels * taps, positions)       taps = prod(kernel_size), positions = prod(output_size)
    output   (batch, out_channels, *output_size)

A row of ``columns`` is one tap of one channel: channels come first, then taps in row-major order. Along every axis

    output_size = (input_size + padding_low + padding_high - span) // stride + 1
    span        = (kernel_size - 1) * dilation + 1

``stride`` and ``dilation`` are an int or one int per axis. ``padding`` is an int, one int per axis, or one (low, high)
pair per axis; a negative one crops. Any dtype and any device will do: the results are made from the arguments. Nothing
here calls a convolution, ``unfold`` or ``fold`` of torch, or any other part of the package. Everything is
differentiable by autograd, and :class:`UnfoldConvFunction` writes the gradients of the convolution by hand.

    >>> import torch
    >>> image, weight = torch.arange(9.0).reshape(1, 1, 3, 3), torch.ones(1, 1, 2, 2)
    >>> unfold_naive(image, 2)[0]
    tensor([[0., 1., 3., 4.],
            [1., 2., 4., 5.],
            [3., 4., 6., 7.],
            [4., 5., 7., 8.]])
    >>> fold_naive(unfold_naive(image, 2), (3, 3), 2)[0, 0, 1]
    tensor([ 6., 16., 10.])
    >>> conv_naive(image, weight).flatten(), torch.equal(unfold_conv(image, weight), conv_naive(image, weight))
    (tensor([ 8., 12., 20., 24.]), True)
    >>> UnfoldConvFunction.apply(image, weight, None, 1, 0, 1, 1).shape, UnfoldConv(1, 2, 3)(image).shape
    (torch.Size([1, 1, 2, 2]), torch.Size([1, 2, 3, 3]))
    >>> conv_transpose_naive(image, weight).shape, unfold_transpose_naive(image, 2).shape
    (torch.Size([1, 1, 4, 4]), torch.Size([1, 4, 16]))
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "UnfoldConv",
    "UnfoldConvFunction",
    "conv_naive",
    "conv_transpose_naive",
    "fold_naive",
    "unfold_conv",
    "unfold_naive",
    "unfold_transpose_naive",
]

IntOrTuple = int | Sequence[int]
Padding = int | Sequence[int | Sequence[int]]


# --- the window -------------------------------------------------------------------------------------------------------


def _per_axis(value: IntOrTuple, rank: int, name: str, least: int = 1) -> tuple[int, ...]:
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank or any(entry < least for entry in values):
        raise ValueError(f"{name} must be an int or {rank} ints of at least {least}, but got {value}")
    return values


def _pairs(padding: Padding, rank: int) -> tuple[tuple[int, int], ...]:
    values = (padding,) * rank if isinstance(padding, int) else tuple(padding)
    pairs = [(value, value) if isinstance(value, int) else tuple(value) for value in values]
    if len(pairs) != rank or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"padding must be an int or {rank} ints or (low, high) pairs, but got {padding}")
    return tuple((pair[0], pair[1]) for pair in pairs)


@dataclass(frozen=True)
class _Window:
    """A kernel that slides over an image: one entry per axis in each field."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(cls, kernel_size: IntOrTuple, stride: IntOrTuple, padding: Padding, dilation: IntOrTuple) -> "_Window":
        """Checks and spreads arguments as users give them. An int kernel_size means two axes."""
        rank = 2 if isinstance(kernel_size, int) else len(kernel_size)
        return cls(
            _per_axis(kernel_size, rank, "kernel_size"),
            _per_axis(stride, rank, "stride"),
            _pairs(padding, rank),
            _per_axis(dilation, rank, "dilation"),
        )

    @property
    def rank(self) -> int:
        return len(self.kernel_size)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel_size)

    @property
    def span(self) -> tuple[int, ...]:
        """Elements from the first tap to the last, both included."""
        return tuple((kernel - 1) * gap + 1 for kernel, gap in zip(self.kernel_size, self.dilation, strict=True))

    def padded_size(self, image_size: Sequence[int]) -> tuple[int, ...]:
        if len(image_size) != self.rank:
            raise ValueError(f"there must be {self.rank} spatial axes, but got {tuple(image_size)}")
        return tuple(size + low + high for size, (low, high) in zip(image_size, self.padding, strict=True))

    def output_size(self, image_size: Sequence[int]) -> tuple[int, ...]:
        """How often the window fits along each axis; at least once, or it is an error."""
        padded, span = self.padded_size(image_size), self.span
        if any(size < length for size, length in zip(padded, span, strict=True)):
            raise ValueError(f"the kernel must fit the padded input, but it spans {span} of {padded}")
        return tuple((size - length) // step + 1 for size, length, step in zip(padded, span, self.stride, strict=True))

    def transposed_size(self, image_size: Sequence[int], output_padding: tuple[int, ...]) -> tuple[int, ...]:
        """The largest image that gives ``image_size`` positions and at most ``output_padding`` more elements."""
        if len(image_size) != self.rank or any(size < 1 for size in image_size):
            raise ValueError(f"there must be {self.rank} spatial axes, none empty, but got {tuple(image_size)}")
        result = tuple(
            (size - 1) * step + length + extra - low - high
            for size, step, length, extra, (low, high) in zip(
                image_size, self.stride, self.span, output_padding, self.padding, strict=True
            )
        )
        if any(size < 1 for size in result):
            raise ValueError(f"padding must leave an output, but got {self.padding}, which leaves {result}")
        return result

    def at_position(self, position: tuple[int, ...]) -> tuple[slice, ...]:
        """Selects what the window sees of a padded batch from one position: one element per tap."""
        seen = (
            slice(index * step, index * step + length, gap)
            for index, step, length, gap in zip(position, self.stride, self.span, self.dilation, strict=True)
        )
        return (slice(None), slice(None), *seen)

    def at_tap(self, tap: tuple[int, ...], output_size: Sequence[int]) -> tuple[slice, ...]:
        """Selects what one tap sees of a padded batch: one element per position."""
        seen = (
            slice(index * gap, index * gap + (length - 1) * step + 1, step)
            for index, gap, length, step in zip(tap, self.dilation, output_size, self.stride, strict=True)
        )
        return (slice(None), slice(None), *seen)

    def pad(self, image: Tensor) -> Tensor:
        """Appends zeros, of the image's own dtype and device; crops where the padding is negative."""
        return nn.functional.pad(image, [amount for pair in reversed(self.padding) for amount in pair])

    def unpad(self, padded: Tensor) -> Tensor:
        """The adjoint of :meth:`pad`: crops what that appends and gives zeros to what that crops."""
        return nn.functional.pad(padded, [-amount for pair in reversed(self.padding) for amount in pair])


def _every(size: Sequence[int]) -> Iterable[tuple[int, ...]]:
    """Every index into an array of this size, in row-major order."""
    return itertools.product(*(range(length) for length in size))


# --- columns ----------------------------------------------------------------------------------------------------------


def unfold_naive(
    input: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple = 1, padding: Padding = 0, dilation: IntOrTuple = 1
) -> Tensor:
    """Cuts ``input`` into the patches that a kernel sees, one output position after another (im2col).

    Args:
        input: Shape ``(batch, channels, *input_size)``, any dtype.
        kernel_size: Taps per axis; an int means two axes.
        stride: Elements from one position to the next.
        padding: Zeros around the input: an int, one int per axis, or one (low, high) pair per axis.
        dilation: Elements from one tap to the next.

    Returns:
        Shape ``(batch, channels * prod(kernel_size), positions)``, contiguous.

    Raises:
        ValueError: If an argument has the wrong length or sign, or the kernel does not fit.
    """
    window = _Window.of(kernel_size, stride, padding, dilation)
    output_size = window.output_size(input.shape[2:])
    padded = window.pad(input)
    # Each patch has the shape (batch, channels * taps).
    patches = [padded[window.at_position(position)].flatten(1) for position in _every(output_size)]
    return torch.stack(patches, dim=-1)


# The dtype in which a dtype is summed where that is not its own. Unsigned integers wrap around when cast back.
_SUM_DTYPE = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.complex32: torch.complex64,
    torch.uint16: torch.int64,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
}


def fold_naive(
    columns: Tensor,
    input_size: Sequence[int],
    kernel_size: IntOrTuple,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
) -> Tensor:
    """Adds every patch to where it was cut from: the adjoint of :func:`unfold_naive` (col2im).

    Args:
        columns: Shape ``(batch, channels * prod(kernel_size), positions)``. bool is added by "or".
        input_size: Spatial size of the result.
        kernel_size: As for :func:`unfold_naive`.
        stride: As for :func:`unfold_naive`.
        padding: As for :func:`unfold_naive`.
        dilation: As for :func:`unfold_naive`.

    Returns:
        Shape ``(batch, channels, *input_size)``, contiguous. 16-bit types are summed in float32 and rounded once.

    Raises:
        ValueError: As :func:`unfold_naive`, or if the columns do not fit.
    """
    window = _Window.of(kernel_size, stride, padding, dilation)
    output_size = window.output_size(input_size)
    batch, rows, positions = columns.shape
    if rows % window.taps != 0 or positions != math.prod(output_size):
        raise ValueError(
            f"columns must have a multiple of {window.taps} rows and {math.prod(output_size)} positions, "
            f"but got {rows} and {positions}"
        )
    channels = rows // window.taps

    values = columns.to(_SUM_DTYPE.get(columns.dtype, columns.dtype))
    values = values.reshape(batch, channels, window.taps, *output_size)
    padded = values.new_zeros(batch, channels, *window.padded_size(input_size))
    for row, tap in enumerate(_every(window.kernel_size)):
        padded[window.at_tap(tap, output_size)] += values[:, :, row]
    return window.unpad(padded).to(columns.dtype).contiguous()


def unfold_transpose_naive(
    input: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    output_padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1,
) -> Tensor:
    """The patches of a transposed convolution: what every element of its output is summed from.

    ``columns[n, c * taps + tap, o] = input[n, c, i]`` where ``i * stride = o + padding_low - tap * dilation``, and 0
    where there is no such ``i``.

    Args:
        input: Shape ``(batch, channels, *input_size)``, any dtype.
        kernel_size: Taps per axis; an int means two axes.
        stride: Elements of the output from one element of the input to the next.
        padding: What is cut off the output: an int, one int per axis, or one (low, high) pair per axis.
        output_padding: Elements appended at the high end of the output, so that every size can be reached.
        dilation: Elements of the output from one tap to the next.

    Returns:
        Shape ``(batch, channels * prod(kernel_size), prod(output_size))``, contiguous, where along every axis
        ``output_size = (input_size - 1) * stride - padding_low - padding_high + span + output_padding``.

    Raises:
        ValueError: If an argument has the wrong length or sign, or the input or the output is empty.
    """
    window = _Window.of(kernel_size, stride, padding, dilation)
    extra = _per_axis(output_padding, window.rank, "output_padding", least=0)
    padded_size = window.padded_size(window.transposed_size(input.shape[2:], extra))
    taps = []
    for tap in _every(window.kernel_size):
        padded = input.new_zeros(*input.shape[:2], *padded_size)
        padded[window.at_tap(tap, input.shape[2:])] = input
        taps.append(window.unpad(padded).flatten(2))  # (batch, channels, positions)
    return torch.stack(taps, dim=2).flatten(1, 2)


# --- convolution ------------------------------------------------------------------------------------------------------


def _by_group(tensor: Tensor, groups: int, axis: int) -> Tensor:
    """Splits one axis into two of (groups, size / groups)."""
    if groups < 1 or tensor.shape[axis] % groups != 0:
        raise ValueError(f"groups must be positive and divide the channels, but got {groups} for {tensor.shape[axis]}")
    return tensor.reshape(*tensor.shape[:axis], groups, tensor.shape[axis] // groups, *tensor.shape[axis + 1 :])


def _as_image(output: Tensor, output_size: tuple[int, ...], bias: Tensor | None) -> Tensor:
    """Reshapes (batch, groups, out_channels / groups, positions) to (batch, out_channels, *output_size); adds bias."""
    output = output.flatten(1, 2)
    output = output.reshape(*output.shape[:2], *output_size)
    return output if bias is None else output + bias.reshape(-1, *[1] * len(output_size))


def conv_naive(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution: pad, unfold, one matrix product.

    Args:
        input: Shape ``(batch, in_channels, *input_size)``.
        weight: Shape ``(out_channels, in_channels / groups, *kernel_size)``.
        bias: Shape ``(out_channels,)``, or None.
        stride: As for :func:`unfold_naive`.
        padding: As for :func:`unfold_naive`.
        dilation: As for :func:`unfold_naive`.
        groups: Number of parts into which both channels are split; each output part sees its own input part.

    Returns:
        Shape ``(batch, out_channels, *output_size)``.

    Raises:
        ValueError: As :func:`unfold_naive`, or if ``groups`` does not divide the channels.
    """
    kernel_size = tuple(weight.shape[2:])
    output_size = _Window.of(kernel_size, stride, padding, dilation).output_size(input.shape[2:])
    columns = unfold_naive(input, kernel_size, stride, padding, dilation)
    # output = W @ U for every image and group, of shapes
    #   (groups, out_channels / groups, in_channels / groups * taps) @ (..., in_channels / groups * taps, positions)
    output = _by_group(weight.flatten(1), groups, 0) @ _by_group(columns, groups, 1)
    return _as_image(output, output_size, bias)


def conv_transpose_naive(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    output_padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """Transposed convolution: its patches, one matrix product.

    Args:
        input: Shape ``(batch, in_channels, *input_size)``.
        weight: Shape ``(in_channels, out_channels / groups, *kernel_size)``.
        bias: Shape ``(out_channels,)``, or None.
        stride: As for :func:`unfold_transpose_naive`.
        padding: As for :func:`unfold_transpose_naive`.
        output_padding: As for :func:`unfold_transpose_naive`.
        dilation: As for :func:`unfold_transpose_naive`.
        groups: Number of parts into which both channels are split; each output part sees its own input part.

    Returns:
        Shape ``(batch, out_channels, *output_size)``.

    Raises:
        ValueError: As :func:`unfold_transpose_naive`, or if ``groups`` does not divide the channels.
    """
    window = _Window.of(tuple(weight.shape[2:]), stride, padding, dilation)
    extra = _per_axis(output_padding, window.rank, "output_padding", least=0)
    output_size = window.transposed_size(input.shape[2:], extra)
    columns = unfold_transpose_naive(input, window.kernel_size, stride, padding, extra, dilation)
    # output = W @ U for every image and group, with W rearranged so that the shapes are
    #   (groups, out_channels / groups, in_channels / groups * taps) @ (..., in_channels / groups * taps, positions)
    by_output = _by_group(weight.flatten(2), groups, 0).transpose(1, 2).flatten(2)
    output = by_output @ _by_group(columns, groups, 1)
    return _as_image(output, output_size, bias)


# --- convolution with its gradients written by hand -------------------------------------------------------------------


class UnfoldConvFunction(torch.autograd.Function):
    """The convolution of :func:`conv_naive` with hand-written gradients.

    Per group, with the kernel as a matrix K of shape (out_channels, in_channels * taps) and the columns U_n of image n,

        grad_weight = sum over n of grad_output_n @ U_n^H
        grad_input  = fold(K^H @ grad_output)

    where ^H transposes and, for complex numbers, conjugates. Only the gradients that are needed are computed, and only
    what they need is saved. They are made of differentiable operations, so they can be differentiated again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: IntOrTuple,
        padding: Padding,
        dilation: IntOrTuple,
        groups: int,
    ) -> Tensor:
        """See :func:`unfold_conv`."""
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)
        ctx.input_size, ctx.weight_shape = input.shape[2:], weight.shape
        ctx.window, ctx.groups = (stride, padding, dilation), groups
        return conv_naive(input, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of input, weight and bias, and None for the arguments that are not tensors."""
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        kernel_size = tuple(ctx.weight_shape[2:])
        # (batch, groups, out_channels / groups, positions)
        grad_output = _by_group(grad_outputs[0].flatten(2), ctx.groups, 1)

        grad_input = grad_weight = grad_bias = None
        if needs_input:
            kernel = _by_group(weight.flatten(1), ctx.groups, 0)
            columns = (kernel.mH @ grad_output).flatten(1, 2)
            grad_input = fold_naive(columns, ctx.input_size, kernel_size, *ctx.window)
        if needs_weight:
            columns = _by_group(unfold_naive(input, kernel_size, *ctx.window), ctx.groups, 1)
            grad_weight = (grad_output @ columns.mH).sum(0).reshape(ctx.weight_shape)
        if needs_bias:
            grad_bias = grad_output.sum((0, 3)).flatten()
        return grad_input, grad_weight, grad_bias, None, None, None, None


def unfold_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """:func:`conv_naive`, differentiated by :class:`UnfoldConvFunction`. Arguments, result and errors are the same."""
    output: Tensor = UnfoldConvFunction.apply(input, weight, bias, stride, padding, dilation, groups)  # type: ignore[no-untyped-call]
    return output


class UnfoldConv(nn.Module):
    """A convolution layer of any rank by :func:`unfold_conv`, with the parameters of ``torch.nn.Conv1d/2d/3d``.

    The names, shapes and initial values of its parameters are theirs, so a ``state_dict`` fits both.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Taps per axis; its length is the rank, an int means two axes.
        stride: Elements from one position to the next.
        padding: Zeros around the input: an int, one int per axis, or one (low, high) pair per axis.
        dilation: Elements from one tap to the next.
        groups: Number of parts into which both channels are split.
        bias: Whether a number per output channel is learnt and added.
        device: Of the parameters; torch's default if None.
        dtype: Of the parameters; torch's default if None.

    Raises:
        ValueError: If a size is not positive or ``groups`` does not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrTuple = (3, 3),
        stride: IntOrTuple = 1,
        padding: Padding = 1,
        dilation: IntOrTuple = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups != 0 or out_channels % groups != 0:
            raise ValueError(
                f"groups must be positive and divide the channels, but got {groups} for {in_channels}, {out_channels}"
            )
        window = _Window.of(kernel_size, stride, padding, dilation)
        self.kernel_size, self.stride = window.kernel_size, window.stride
        self.padding, self.dilation = window.padding, window.dilation
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws both uniformly from +-1 / sqrt(in_channels / groups * taps), in the order of ``torch.nn.Conv2d``."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (batch, in_channels, *input_size) to (batch, out_channels, *output_size)."""
        return unfold_conv(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """The constructor's arguments, as ``print`` shows them."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}"
        )
