"""Random geometry for tests/ops/test_fuzz.py, valid and not, and what is right for it.

What is right is taken from the index equations themselves, one axis at a time, and not from the reference, whose padded
images could be of any size here. Numbers are small integers in types that hold their sums, so results are equal.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from cases import MEMORY_FORMATS

DTYPES = [torch.float32, torch.float64, torch.int64, torch.complex128]

# Where arithmetic on 64 bits goes wrong, and around it.
WILD = [-(2**64), -(2**63), -(2**62), -(2**31), -2, -1, 0, 2**31 - 1, 2**31, 2**32, 2**40, 2**61]
WILD += [2**62 - 1, 2**62, 2**62 + 1, 2**63 - 2, 2**63 - 1, 2**63, 2**64]

FITS = 2**63


@dataclass(frozen=True)
class Sample:
    """A drawn call. `size` is that of the image under the window, or of the input of a transposed convolution."""

    size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    batch: int
    groups: int
    in_channels: int  # per group
    out_channels: int  # per group
    dtype: torch.dtype
    memory_format: str
    workspace: int
    seed: int

    @property
    def rank(self) -> int:
        return len(self.size)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel_size)

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        return tuple(zip(self.low, self.high, strict=True))

    @property
    def window(self) -> dict[str, object]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    @property
    def op_window(self) -> tuple[list[int], ...]:
        return list(self.stride), list(self.low), list(self.high), list(self.dilation)

    @property
    def axes(self) -> list[tuple[int, ...]]:
        return list(
            zip(
                self.size,
                self.kernel_size,
                self.stride,
                self.low,
                self.high,
                self.dilation,
                self.output_padding,
                strict=True,
            )
        )

    def is_window(self, direct: bool) -> bool:
        """What holds of every window, whatever it slides over. The ops let the high padding crop."""
        return (
            min(*self.kernel_size, *self.stride, *self.dilation) >= 1
            and min(self.low) >= 0
            and min(self.high) >= (-FITS if direct else 0)
            and max(*self.kernel_size, *self.stride, *self.dilation, *self.low, *self.high) < FITS
        )

    def positions(self, direct: bool = False) -> tuple[int, ...] | None:
        """How often the window fits; None if the call must be refused."""
        if not self.is_window(direct):
            return None
        result = []
        for size, kernel, stride, low, high, dilation, _ in self.axes:
            span, padded = (kernel - 1) * dilation + 1, size + low + high
            if span > padded or size + low >= FITS or padded >= FITS - stride:
                return None
            result.append((padded - span) // stride + 1)
        return tuple(result)

    def full_size(self) -> tuple[int, ...]:
        """The size of a transposed convolution's result, whether there can be one or not."""
        return tuple(
            (size - 1) * stride - low - high + (kernel - 1) * dilation + 1 + extra
            for size, kernel, stride, low, high, dilation, extra in self.axes
        )

    def transposed_size(self, direct: bool = False) -> tuple[int, ...] | None:
        """The same; None if the call must be refused. To the op an output padding is what the window leaves over."""
        if not self.is_window(direct) or min(self.size) < 1 or min(self.output_padding) < 0:
            return None
        for length, (_, _, stride, low, high, dilation, extra) in zip(self.full_size(), self.axes, strict=True):
            if length < (0 if direct else 1) or length + low + high >= FITS - stride:
                return None
            if extra >= (stride if direct else max(stride, dilation)):
                return None
        return self.full_size()

    def tensor(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        tensor = torch.randint(-4, 5, shape, generator=generator).to(self.dtype)
        return MEMORY_FORMATS[self.memory_format](tensor) if tensor.dim() > 2 else tensor

    def read(self, axis: int, tap: int, position: int) -> int:
        """What a tap of the window reads at a position."""
        return position * self.stride[axis] - self.low[axis] + tap * self.dilation[axis]

    def read_transposed(self, axis: int, tap: int, position: int) -> int:
        """What an element of a transposed convolution's result sums of a tap; -1 if nothing."""
        reached = position + self.low[axis] - tap * self.dilation[axis]
        return reached // self.stride[axis] if reached % self.stride[axis] == 0 else -1


def gather(image: Tensor, kernel_size: Sequence[int], positions: Sequence[int], read: Callable[..., int]) -> Tensor:
    """columns[n, c, taps, positions] = image[n, c, read(axis, tap, position) along each axis], or 0 outside."""
    for axis, (taps, length) in enumerate(zip(kernel_size, positions, strict=True)):
        size = image.shape[2 + axis]
        reads = [read(axis, tap, position) for tap in range(taps) for position in range(length)]
        zero = image.new_zeros(*image.shape[: 2 + axis], 1, *image.shape[3 + axis :])  # stands for all that is outside
        inside = torch.tensor([index if 0 <= index < size else size for index in reads], dtype=torch.int64)
        image = torch.cat([image, zero], 2 + axis).index_select(2 + axis, inside)
    pairs = [number for pair in zip(kernel_size, positions, strict=True) for number in pair]
    order = [0, 1, *range(2, 2 + len(pairs), 2), *range(3, 3 + len(pairs), 2)]
    rows = image.shape[1] * math.prod(kernel_size)
    return image.reshape(*image.shape[:2], *pairs).permute(order).reshape(len(image), rows, math.prod(positions))


def spread(
    columns: Tensor, size: Sequence[int], kernel_size: Sequence[int], positions: Sequence[int], read: Callable[..., int]
) -> Tensor:
    """The adjoint of gather. Sums are exact in double precision."""
    exact = torch.complex128 if columns.is_complex() else torch.float64
    image = torch.zeros(
        len(columns), columns.shape[1] // math.prod(kernel_size), *size, dtype=exact, requires_grad=True
    )
    gathered = gather(image, kernel_size, positions, read)
    return torch.autograd.grad(gathered, image, columns.to(exact))[0].to(columns.dtype)


def product(weight: Tensor, columns: Tensor, groups: int) -> Tensor:
    """output[n, g * rows + m, p] = sum over r of weight[g, m, r] * columns[n, g * depth + r, p]."""
    split = columns.reshape(len(columns), groups, weight.shape[2], columns.shape[2])
    return (weight @ split).reshape(len(columns), groups * weight.shape[1], columns.shape[2])


@st.composite
def samples(draw: st.DrawFn, wild: bool = True) -> Sample:
    """Mostly a small valid geometry; in half of the samples one or two of its numbers are anything at all."""
    rank = draw(st.integers(1, 3))
    most = (9, 6, 4)[rank - 1]

    def per_axis(least: int, greatest: int) -> list[int]:
        return draw(st.lists(st.integers(least, greatest), min_size=rank, max_size=rank))

    numbers = {
        "kernel_size": per_axis(1, 3),
        "stride": per_axis(1, 3),
        "low": per_axis(0, 4 - rank),
        "high": per_axis(0, 4 - rank),
        "dilation": per_axis(1, 3),
        "output_padding": per_axis(0, 1),
    }
    if wild and draw(st.booleans()):
        for _ in range(draw(st.integers(1, 2))):
            name, axis = draw(st.sampled_from(sorted(numbers))), draw(st.integers(0, rank - 1))
            numbers[name][axis] = draw(st.sampled_from(WILD) | st.integers(-3, 9))
    return Sample(
        size=tuple(per_axis(0 if wild else 1, most)),
        batch=draw(st.integers(0, 2)),
        groups=draw(st.integers(1, 3)),
        in_channels=draw(st.integers(0, 2)),
        out_channels=draw(st.integers(0, 2)),
        dtype=draw(st.sampled_from(DTYPES)),
        memory_format=draw(st.sampled_from(sorted(MEMORY_FORMATS))),
        workspace=draw(st.sampled_from([1, 700, 2**21])),
        seed=draw(st.integers(0, 99)),
        **{name: tuple(values) for name, values in numbers.items()},
    )
