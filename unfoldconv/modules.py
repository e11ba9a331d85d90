"""Modules with torch.nn's constructor arguments, attributes and state_dict, computed by :mod:`unfoldconv.functional`.

Every class derives from its torch.nn namesake, so code that asks ``isinstance(module, torch.nn.Conv2d)`` (initialisers,
spectral norm, summaries) treats it alike, and a state_dict loads in both directions. What they take beyond torch.nn:

* ``padding`` may be one ``(low, high)`` pair per axis;
* ``padding="same"`` goes with any stride, and with transposed convolution;
* transposed convolution takes every ``padding_mode``.

In the shapes below N is the batch, C_in and C_out are channels, I and O the input's and the output's size, and ``*``
stands for one size per spatial axis. The batch may be absent.
"""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from . import functional
from ._conv_modules import ConvModule, ConvolutionModule, ConvTransposeModule, batched_shape, check_channels
from ._geometry import IntOrTuple, Padding
from ._patches import Reduction

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Fold",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
    "Unfold",
    "UnfoldTranspose",
]


class Conv1d(ConvModule, nn.Conv1d):
    """Convolution of signals: (N, C_in, L) -> (N, C_out, L_out); an example is at `Conv2d`."""

    _rank = 1
    _function = staticmethod(functional.conv1d)


class Conv2d(ConvModule, nn.Conv2d):
    """Convolution of images: (N, C_in, H, W) -> (N, C_out, H_out, W_out).

    Example:
        >>> import torch, unfoldconv as uc
        >>> layer = uc.Conv2d(3, 4, kernel_size=3, stride=2, padding="same")
        >>> layer(torch.ones(1, 3, 8, 8)).shape
        torch.Size([1, 4, 4, 4])
    """

    _rank = 2
    _function = staticmethod(functional.conv2d)


class Conv3d(ConvModule, nn.Conv3d):
    """Convolution of volumes: (N, C_in, D, H, W) -> (N, C_out, D_out, H_out, W_out); an example is at `Conv2d`."""

    _rank = 3
    _function = staticmethod(functional.conv3d)


class ConvTranspose1d(ConvTransposeModule, nn.ConvTranspose1d):
    """Transposed convolution of signals: (N, C_in, L) -> (N, C_out, L_out); an example is at `ConvTranspose2d`."""

    _rank = 1
    _function = staticmethod(functional.conv_transpose1d)


class ConvTranspose2d(ConvTransposeModule, nn.ConvTranspose2d):
    """Transposed convolution of images: (N, C_in, H, W) -> (N, C_out, H_out, W_out).

    Example:
        >>> import torch, unfoldconv as uc
        >>> layer = uc.ConvTranspose2d(4, 3, kernel_size=3, stride=2, padding="same", padding_mode="circular")
        >>> layer(torch.ones(1, 4, 5, 5)).shape
        torch.Size([1, 3, 10, 10])
    """

    _rank = 2
    _function = staticmethod(functional.conv_transpose2d)


class ConvTranspose3d(ConvTransposeModule, nn.ConvTranspose3d):
    """Transposed convolution of volumes: (N, C_in, D, H, W) -> (N, C_out, *sizes), see `ConvTranspose2d`."""

    _rank = 3
    _function = staticmethod(functional.conv_transpose3d)


# --- lazy forms -------------------------------------------------------------------------------------------------------
# As in torch.nn, weight and bias change their type with the first input, which a type checker cannot follow.


class _Lazy(ConvolutionModule):
    """Takes C_in from the first input, as torch.nn's class does; also checks what that leaves open until then."""

    def initialize_parameters(self, input: Tensor, *args: object, **kwargs: object) -> None:
        """Makes the parameters for the channels of this input."""
        if isinstance(self.weight, nn.UninitializedParameter):
            check_channels(batched_shape(input, self._rank)[1], self.out_channels, self.groups)
        super().initialize_parameters(input, *args, **kwargs)  # type: ignore[misc]


class LazyConv1d(_Lazy, nn.LazyConv1d, Conv1d):  # type: ignore[misc]
    """`Conv1d` without `in_channels`, which the first input tells."""

    cls_to_become = Conv1d


class LazyConv2d(_Lazy, nn.LazyConv2d, Conv2d):  # type: ignore[misc]
    """`Conv2d` without `in_channels`, which the first input tells."""

    cls_to_become = Conv2d


class LazyConv3d(_Lazy, nn.LazyConv3d, Conv3d):  # type: ignore[misc]
    """`Conv3d` without `in_channels`, which the first input tells."""

    cls_to_become = Conv3d


class LazyConvTranspose1d(_Lazy, nn.LazyConvTranspose1d, ConvTranspose1d):  # type: ignore[misc]
    """`ConvTranspose1d` without `in_channels`, which the first input tells."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(_Lazy, nn.LazyConvTranspose2d, ConvTranspose2d):  # type: ignore[misc]
    """`ConvTranspose2d` without `in_channels`, which the first input tells."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(_Lazy, nn.LazyConvTranspose3d, ConvTranspose3d):  # type: ignore[misc]
    """`ConvTranspose3d` without `in_channels`, which the first input tells."""

    cls_to_become = ConvTranspose3d


# --- patches ----------------------------------------------------------------------------------------------------------


class Unfold(nn.Unfold):
    """`unfoldconv.unfold` as a module: (N, C, *I) -> (N, C * prod(kernel_size), prod(O)).

    Args:
        kernel_size: Taps per axis; a tuple's length (1 to 3) is the number of axes, an int means two of them.
        dilation: Distance between taps. Default: 1.
        padding: An int, one per axis, one (low, high) pair per axis, "valid" or "same". Default: 0.
        stride: Steps of the window. Default: 1.

    Example:
        >>> import torch, unfoldconv as uc
        >>> uc.Unfold(kernel_size=(3,))(torch.ones(2, 4, 9)).shape
        torch.Size([2, 12, 7])
    """

    def __init__(
        self, kernel_size: IntOrTuple, dilation: IntOrTuple = 1, padding: Padding = 0, stride: IntOrTuple = 1
    ) -> None:
        super().__init__(kernel_size, dilation, padding, stride)  # type: ignore[arg-type]

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor: ...

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *I) -> (N, C * prod(kernel_size), prod(O))."""
        return functional.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)


class Fold(nn.Fold):
    """`unfoldconv.fold` as a module: (N, C * prod(kernel_size), L) -> (N, C, *output_size).

    Args:
        output_size: Spatial sizes of the result.
        kernel_size: Taps per axis.
        dilation: Distance between taps. Default: 1.
        padding: An int, one per axis, one (low, high) pair per axis, "valid" or "same". Default: 0.
        stride: Steps of the window. Default: 1.
        reduction: "sum", or "mean": each element is divided by how many patches cover it. Default: "sum".

    Example:
        >>> import torch, unfoldconv as uc
        >>> image = torch.arange(9.0).reshape(1, 1, 3, 3)
        >>> torch.equal(uc.Fold((3, 3), 2, reduction="mean")(uc.Unfold(2)(image)), image)
        True
    """

    reduction: Reduction = "sum"  # of the class too, for a torch.nn.Fold that was converted

    def __init__(
        self,
        output_size: IntOrTuple,
        kernel_size: IntOrTuple,
        dilation: IntOrTuple = 1,
        padding: Padding = 0,
        stride: IntOrTuple = 1,
        reduction: Reduction = "sum",
    ) -> None:
        super().__init__(output_size, kernel_size, dilation, padding, stride)  # type: ignore[arg-type]
        self.reduction = reduction

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor: ...

    def forward(self, input: Tensor) -> Tensor:
        """(N, C * prod(kernel_size), L) -> (N, C, *output_size)."""
        return functional.fold(
            input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride, self.reduction
        )

    def extra_repr(self) -> str:
        """The arguments, as torch.nn shows them."""
        return super().extra_repr() + (f", reduction={self.reduction}" if self.reduction != "sum" else "")


class UnfoldTranspose(nn.Module):
    """`unfoldconv.unfold_transpose` as a module: (N, C, *I) -> (N, C * prod(kernel_size), prod(O)).

    O is the output size of a transposed convolution with the same arguments.

    Args:
        kernel_size: Taps per axis; a tuple's length (1 to 3) is the number of axes, an int means two of them.
        dilation: Distance between taps. Default: 1.
        padding: As for transposed convolution. Default: 0.
        stride: As for transposed convolution. Default: 1.
        output_padding: As for transposed convolution. Default: 0.

    Example:
        >>> import torch, unfoldconv as uc
        >>> uc.UnfoldTranspose(kernel_size=2, stride=2)(torch.ones(1, 3, 4, 4)).shape
        torch.Size([1, 12, 64])
    """

    def __init__(
        self,
        kernel_size: IntOrTuple,
        dilation: IntOrTuple = 1,
        padding: Padding = 0,
        stride: IntOrTuple = 1,
        output_padding: IntOrTuple = 0,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.padding = padding
        self.stride = stride
        self.output_padding = output_padding

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor: ...

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *I) -> (N, C * prod(kernel_size), prod(O))."""
        return functional.unfold_transpose(
            input, self.kernel_size, self.dilation, self.padding, self.stride, self.output_padding
        )

    def extra_repr(self) -> str:
        """The arguments, as torch.nn shows them."""
        names = ("kernel_size", "dilation", "padding", "stride", "output_padding")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
