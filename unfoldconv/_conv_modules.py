"""The base classes of the convolution modules: arguments, padding modes, and the size of a transposed result."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from ._calls import batched
from ._geometry import (
    GeometryError,
    IntOrTuple,
    Padding,
    Sizes,
    Window,
    per_axis,
    span_of,
    transposed_output_size,
    transposed_window_of,
    window_of,
)

Device: TypeAlias = torch.device | str | int | None
Pairs: TypeAlias = tuple[tuple[int, int], ...]  # (low, high) of each axis

PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]


def check_channels(in_channels: int, out_channels: int, groups: int) -> None:
    if groups <= 0:
        raise GeometryError(f"groups must be a positive integer, but got {groups}")
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels < 0 or channels % groups != 0:
            raise GeometryError(
                f"{name} must be divisible by groups and not negative, but got {channels} with groups {groups}"
            )


def _per_axis(name: str, value: object, rank: int) -> Sizes:
    numbers = per_axis(name, value, rank)
    if name != "output_padding" and any(number <= 0 for number in numbers):
        raise GeometryError(f"{name} must be positive, but got {numbers}")
    return numbers


def _pairs(window: Window) -> Pairs:
    return tuple(zip(window.padding_low, window.padding_high, strict=True))


def _attribute(padding: Padding, kernel_size: Sizes) -> str | Sizes | Pairs:
    """The padding in torch.nn's form, a word or one number per axis, unless some axis is asymmetric."""
    window = window_of((1,) * len(kernel_size), kernel_size, 1, padding, 1)  # checks the padding
    if isinstance(padding, str):
        return padding
    return window.padding_low if window.padding_low == window.padding_high else _pairs(window)


def batched_shape(input: Tensor, rank: int) -> Sizes:
    """(N, C, *I), of an input that may lack the batch."""
    image, _ = batched("input", input, rank + 2)
    return image.shape


def _extend(input: Tensor, amounts: Pairs, padding_mode: str) -> Tensor:
    """Extends the spatial axes by (low, high) elements each, in the way of the padding mode."""
    for axis, pair in enumerate(amounts):
        size = input.shape[axis - len(amounts)]
        if padding_mode == "reflect" and max(pair) >= size:
            raise GeometryError(
                f"padding must be smaller than the input with padding_mode='reflect' (Padding size should be less than "
                f"the corresponding input dimension), but got {pair} for size {size} along axis {axis}"
            )
        if padding_mode == "circular" and max(pair) > size:
            raise GeometryError(
                f"padding must be at most the input's size with padding_mode='circular' (Padding value causes wrapping "
                f"around more than once), but got {pair} for size {size} along axis {axis}"
            )
    flat = [amount for pair in reversed(amounts) for amount in pair]
    return nn.functional.pad(input, flat, mode=padding_mode) if any(flat) else input


class ConvolutionModule(nn.modules.conv._ConvNd):
    """What all convolutions share. Stands before the torch.nn class among the bases of each public class."""

    _rank: ClassVar[int]
    _function: ClassVar[Callable[..., Tensor]]

    def _construct(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        padding: Padding,
        padding_mode: PaddingMode,
        sizes: dict[str, IntOrTuple],
        others: dict[str, Any],
    ) -> None:
        """Checks the arguments, lets torch.nn's constructor make the parameters, and sets what it would not take."""
        check_channels(in_channels, out_channels, groups)
        if padding_mode not in get_args(PaddingMode):
            raise GeometryError(f"padding_mode must be one of {get_args(PaddingMode)}, but got {padding_mode!r}")
        arguments = others | {name: _per_axis(name, value, self._rank) for name, value in sizes.items()}
        super().__init__(in_channels, out_channels, groups=groups, **arguments)
        self.padding = _attribute(padding, self.kernel_size)  # type: ignore[assignment]  # torch knows no pairs
        self.padding_mode = padding_mode


class ConvModule(ConvolutionModule):
    """Convolution: ``y[o] = bias + sum over k of weight[k] * x[o * stride - padding_low + k * dilation]``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrTuple,
        stride: IntOrTuple = 1,
        padding: Padding = 0,
        dilation: IntOrTuple = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Makes the parameters and initialises them as torch.nn does.

        Args:
            in_channels: C_in.
            out_channels: C_out.
            kernel_size: Taps per axis.
            stride: Steps of the window. Default: 1.
            padding: An int, one per axis, one (low, high) pair per axis, "valid" (none) or "same" (O =
                ceil(I / stride)). Default: 0.
            dilation: Distance between taps. Default: 1.
            groups: Channels are convolved in so many separate groups; divides C_in and C_out. Default: 1.
            bias: Whether to add a learnable number per output channel. Default: True.
            padding_mode: What stands in the padding: "zeros", "reflect", "replicate" or "circular". Default: "zeros".
            device: Where the parameters are made.
            dtype: Their type.

        Shapes: weight (C_out, C_in / groups, *kernel_size), bias (C_out,), input (N, C_in, *I), output (N, C_out, *O)
        with O = (I + padding_low + padding_high - dilation * (kernel_size - 1) - 1) // stride + 1.

        Raises:
            GeometryError: An argument or the input breaks one of these rules.
            TypeError: A number is not an int.
        """
        sizes = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
        others = {"bias": bias, "device": device, "dtype": dtype}
        self._construct(in_channels, out_channels, groups, padding, padding_mode, sizes, others)

    if TYPE_CHECKING:  # torch.nn's says Any

        def __call__(self, input: Tensor) -> Tensor: ...

    def forward(self, input: Tensor) -> Tensor:
        """(N, C_in, *I) -> (N, C_out, *O)."""
        return self._conv_forward(input, self.weight, self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """torch.nn's name for this step, kept for code that calls it with a weight of its own."""
        padding: Padding = self.padding
        if self.padding_mode != "zeros":
            sizes = batched_shape(input, self._rank)[2:]
            amounts = _pairs(window_of(sizes, self.kernel_size, self.stride, padding, self.dilation))
            input, padding = _extend(input, amounts, self.padding_mode), 0
        return self._function(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class ConvTransposeModule(ConvolutionModule):
    """Transposed convolution: ``y[i * stride - padding_low + k * dilation] += weight[k] * x[i]``, plus the bias.

    With zeros for `padding_mode`, x is nothing outside the input. With another mode, x goes on beyond its ends
    as the mode says, and y is what then falls on the same O elements: x is extended by as many elements on each side as
    reach into the output, (dilation * (kernel_size - 1) - padding) // stride of them. Where O = I * stride, as with
    padding="same", "circular" is the exact adjoint of the circular convolution, and rolling x by 1 rolls y by stride.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrTuple,
        stride: IntOrTuple = 1,
        padding: Padding = 0,
        output_padding: IntOrTuple = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: IntOrTuple = 1,
        padding_mode: PaddingMode = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Makes the parameters and initialises them as torch.nn does.

        Args:
            in_channels: C_in.
            out_channels: C_out.
            kernel_size: Taps per axis.
            stride: Distance in y between neighbours in x. Default: 1.
            padding: What is cropped from the full result: an int, one per axis, one (low, high) pair per axis, "valid"
                (nothing) or "same" (O = I * stride). Default: 0.
            output_padding: Elements added at the high end of each axis, fewer than stride or dilation. Default: 0.
            groups: Channels are convolved in so many separate groups; divides C_in and C_out. Default: 1.
            bias: Whether to add a learnable number per output channel. Default: True.
            dilation: Distance between taps. Default: 1.
            padding_mode: "zeros", "reflect", "replicate" or "circular", see above. Default: "zeros".
            device: Where the parameters are made.
            dtype: Their type.

        Shapes: weight (C_in, C_out / groups, *kernel_size), bias (C_out,), input (N, C_in, *I), output (N, C_out, *O)
        with O = (I - 1) * stride - padding_low - padding_high + dilation * (kernel_size - 1) + 1 + output_padding.

        Raises:
            GeometryError: An argument or the input breaks one of these rules.
            TypeError: A number is not an int.
        """
        sizes = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation, "output_padding": output_padding}
        others = {"bias": bias, "device": device, "dtype": dtype}
        self._construct(in_channels, out_channels, groups, padding, padding_mode, sizes, others)

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor: ...

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """(N, C_in, *I) -> (N, C_out, *O).

        Args:
            input: (N, C_in, *I) or (C_in, *I).
            output_size: The spatial sizes wanted (N and C_out before them are ignored), in place of `output_padding`:
                any that a convolution of the same arguments takes to I. With padding="same" the result is cropped
                as that convolution pads this size.
        """
        padding: Padding = self.padding
        output_padding = self.output_padding
        if output_size is not None or self.padding_mode != "zeros":
            window, output_padding = self._window(input, output_size)
            padding = _pairs(window)
        if self.padding_mode != "zeros":
            amounts = self._reach(window, output_padding)
            input = _extend(input, amounts, self.padding_mode)
            # Each element put before the input moves the output by a stride, so as much more is cropped.
            padding = tuple(
                [
                    (low + before * step, high + after * step)
                    for (low, high), (before, after), step in zip(_pairs(window), amounts, window.stride, strict=True)
                ]
            )
        return self._function(
            input, self.weight, self.bias, self.stride, padding, output_padding, self.groups, self.dilation
        )

    def _window(self, input: Tensor, output_size: Sequence[int] | None) -> tuple[Window, Sizes]:
        """The window as numbers, and the output padding that gives `output_size`."""
        if output_size is None:
            return transposed_window_of(self.kernel_size, self.stride, self.padding, self.output_padding, self.dilation)
        sizes = batched_shape(input, self._rank)[2:]
        if len(output_size) not in (self._rank, input.dim()):
            raise GeometryError(
                f"output_size must have {self._rank} or {input.dim()} elements for {input.dim()}D input, but got "
                f"{tuple(output_size)}"
            )
        wanted = tuple(output_size[-self._rank :])
        window = window_of(wanted, self.kernel_size, self.stride, self.padding, self.dilation)
        smallest = transposed_output_size(sizes, self.kernel_size, window, (0,) * self._rank)
        output_padding = tuple([size - least for size, least in zip(wanted, smallest, strict=True)])
        if any(not 0 <= extra < step for extra, step in zip(output_padding, window.stride, strict=True)):
            if self.padding == "same":
                smallest = tuple([(size - 1) * step + 1 for size, step in zip(sizes, window.stride, strict=True)])
            largest = tuple([least + step - 1 for least, step in zip(smallest, window.stride, strict=True)])
            raise GeometryError(
                f"output_size must be one that a convolution takes to the input's size (requested an output size of "
                f"{list(wanted)}, but valid sizes range from {list(smallest)} to {list(largest)}), but got {wanted} "
                f"for an input of {tuple(sizes)}"
            )
        return window, output_padding

    def _reach(self, window: Window, output_padding: Sizes) -> Pairs:
        """How many elements beyond each end of the input reach into the output, per axis."""
        amounts = []
        for axis, step in enumerate(window.stride):
            last_tap = span_of(self.kernel_size[axis], window.dilation[axis]) - 1
            low = (last_tap - window.padding_low[axis]) // step
            high = (last_tap - window.padding_high[axis] + output_padding[axis]) // step
            amounts.append((max(low, 0), max(high, 0)))
        return tuple(amounts)
