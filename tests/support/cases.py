"""The table of situations that the ops are tested in, and random tensors of every dtype and memory format for them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Case:
    """One convolution; unfold and fold use its geometry, transposed convolution runs it from output to input."""

    name: str
    batch: int
    in_channels: int
    out_channels: int
    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pairs  # (low, high) per axis
    dilation: tuple[int, ...]
    groups: int
    bias: bool

    @property
    def rank(self) -> int:
        return len(self.kernel_size)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel_size)

    @property
    def output_size(self) -> tuple[int, ...]:
        return tuple(
            (size + low + high - (kernel - 1) * dilation - 1) // stride + 1
            for size, (low, high), kernel, dilation, stride in zip(
                self.input_size, self.padding, self.kernel_size, self.dilation, self.stride, strict=True
            )
        )

    @property
    def output_padding(self) -> tuple[int, ...]:
        """What transposed convolution must append to come from output_size to input_size."""
        return tuple(
            size + low + high - (kernel - 1) * dilation - 1 - (positions - 1) * stride
            for size, (low, high), kernel, dilation, stride, positions in zip(
                self.input_size,
                self.padding,
                self.kernel_size,
                self.dilation,
                self.stride,
                self.output_size,
                strict=True,
            )
        )

    @property
    def symmetric(self) -> bool:
        """Whether torch's functions can express the padding."""
        return all(low == high for low, high in self.padding)

    @property
    def torch_padding(self) -> tuple[int, ...]:
        return tuple(low for low, _ in self.padding)

    @property
    def window(self) -> dict[str, Any]:
        """stride, padding and dilation as keyword arguments."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    @property
    def op_window(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """stride, padding_low, padding_high and dilation as the ops take them."""
        low, high = zip(*self.padding, strict=True)
        return list(self.stride), list(low), list(high), list(self.dilation)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.in_channels, *self.input_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the convolution, and of the transposed convolution from output to input."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def columns_shape(self) -> tuple[int, int, int]:
        return (self.batch, self.in_channels * self.taps, math.prod(self.output_size))


# Every entry changes what its comment says and leaves the rest as it is here. Entries per axis are given for three axes
# and cut to the rank. Sizes differ from axis to axis and from each other, so that nothing can be taken for another.
_PLAIN: dict[str, Any] = {
    "batch": 2,
    "in_channels": 4,
    "out_channels": 6,
    "input_size": (7, 6, 5),
    "kernel_size": (3, 2, 4),
    "stride": (1, 1, 1),
    "padding": ((0, 0), (0, 0), (0, 0)),
    "dilation": (1, 1, 1),
    "groups": 1,
    "bias": False,
}
_SITUATIONS: dict[str, dict[str, Any]] = {
    # One window, no frills.
    "plain": {},
    # Windows overlap partly; along the second axis the last elements are read by none.
    "stride": {"stride": (2, 3, 1), "input_size": (8, 7, 5)},
    # Positions that read outside at both ends, and a bias.
    "padding": {"padding": ((1, 1), (2, 2), (3, 3)), "bias": True},
    # Low and high padding differ, and are 0 at one end.
    "asymmetric": {"padding": ((2, 0), (0, 1), (1, 3)), "stride": (2, 1, 3)},
    # Taps that are apart.
    "dilation": {"dilation": (2, 3, 1), "input_size": (9, 8, 6)},
    # Two groups, so that a group must find its channels of input, weight and bias.
    "groups": {"groups": 2, "bias": True, "padding": ((1, 1), (1, 1), (0, 0))},
    # A group for every input channel, each with two outputs.
    "depthwise": {"groups": 4, "out_channels": 8, "padding": ((1, 1), (0, 0), (2, 2))},
    # The kernel covers the input: one position.
    "one_position": {"input_size": (5, 3, 2), "kernel_size": (5, 3, 2)},
    # One tap: the columns are the input itself.
    "one_tap": {"kernel_size": (1, 1, 1), "bias": True},
    # One tap and a stride: most of the input is not read.
    "one_tap_strided": {"kernel_size": (1, 1, 1), "stride": (2, 3, 2)},
    # A stride beyond the kernel: gaps between the windows.
    "gaps": {
        "kernel_size": (2, 1, 2),
        "stride": (4, 3, 3),
        "input_size": (11, 8, 5),
        "padding": ((1, 1), (0, 0), (1, 1)),
    },
    # No image at all.
    "empty_batch": {"batch": 0, "padding": ((1, 1), (0, 0), (0, 0)), "bias": True},
    # One of everything that is counted.
    "one_channel": {"batch": 1, "in_channels": 1, "out_channels": 1},
    # A dilated kernel that is larger than the image, and windows that see nothing but padding.
    "far_padding": {
        "input_size": (3, 2, 2),
        "kernel_size": (3, 2, 3),
        "dilation": (4, 5, 2),
        "padding": ((9, 9), (6, 6), (4, 4)),
        "stride": (3, 2, 2),
    },
    # Everything together.
    "all_at_once": {
        "batch": 3,
        "in_channels": 6,
        "out_channels": 9,
        "input_size": (10, 9, 7),
        "stride": (2, 1, 3),
        "padding": ((3, 1), (0, 2), (4, 3)),
        "dilation": (2, 3, 1),
        "groups": 3,
        "bias": True,
    },
}


def make_case(name: str, rank: int, **changes: Any) -> Case:
    """The plain situation with some changes; entries per axis are cut to the rank."""
    fields = {**_PLAIN, **changes}
    per_axis = {name: value[:rank] for name, value in fields.items() if isinstance(value, tuple)}
    return Case(name=f"{name}-{rank}d", **{**fields, **per_axis})


CASES = [make_case(name, rank, **changes) for rank in (1, 2, 3) for name, changes in _SITUATIONS.items()]
CASES_2D = [case for case in CASES if case.rank == 2]


# --- dtypes -----------------------------------------------------------------------------------------------------------

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
UNSIGNED = [torch.uint16, torch.uint32, torch.uint64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
COMPLEX = [torch.complex64, torch.complex128]
MOVED_ONLY = [
    torch.complex32,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]

UNFOLD_DTYPES = [torch.bool, *INTEGERS, *UNSIGNED, *FLOATS, *COMPLEX, *MOVED_ONLY]
FOLD_DTYPES = [torch.bool, *INTEGERS, *UNSIGNED, *FLOATS, *COMPLEX]
CONV_DTYPES = [*FLOATS, *COMPLEX]


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Normal numbers for floating point, any bits whatever for integers and types that are only moved."""
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, device=device).bool()
    if dtype in CONV_DTYPES:
        return torch.randn(shape, dtype=torch.promote_types(dtype, torch.float32), device=device).to(dtype)
    bits = torch.randint(0, 256, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8, device=device)
    return bits.view(dtype).reshape(shape)


# --- memory formats ---------------------------------------------------------------------------------------------------


def channels_last(tensor: Tensor) -> Tensor:
    """Batch and space first, channels innermost: torch's channels_last, for any rank."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def _permuted(tensor: Tensor) -> Tensor:
    """Strides that grow from the first axis to the last."""
    order = list(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def _expanded(tensor: Tensor) -> Tensor:
    """Every channel is the first one: stride 0."""
    return tensor[:, :1].expand_as(tensor)


def _sliced(tensor: Tensor) -> Tensor:
    """Every second element of a larger tensor along the last axis, and not from its beginning."""
    larger = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 3)
    view = larger[..., 3::2]
    view.copy_(tensor)
    return view


def _uniform(tensor: Tensor) -> Tensor:
    """One number everywhere, which is how the gradient of a sum begins: every stride is 0."""
    return tensor.contiguous().as_strided(tensor.shape, [0] * tensor.dim())


def _spread(tensor: Tensor) -> Tensor:
    """Every third element of a longer last axis."""
    long = torch.repeat_interleave(tensor, 3, -1)
    long[..., 1::3] = long[..., 2::3] = 9
    return long[..., ::3]


# Each keeps the shape; `expanded` and `uniform` change the values, so compute what is expected from the result.
MEMORY_FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last": channels_last,
    "permuted": _permuted,
    "expanded": _expanded,
    "sliced": _sliced,
    "uniform": _uniform,
    "spread": _spread,
}
# Those in which every element has memory of its own, as a result must have.
RESULT_FORMATS = {name: form for name, form in MEMORY_FORMATS.items() if name not in ("expanded", "uniform")}
