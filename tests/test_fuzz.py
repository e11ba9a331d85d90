"""Random geometry, valid and not, at every op and function: what is valid has the right result, all else is refused.

What is right is taken from the index equations themselves, one axis at a time, and not from the reference, whose padded
images could be of any size here. Numbers are small integers in types that hold their sums, so results are equal.
"""

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import unfoldconv as uc
from cases import MEMORY_FORMATS
from unfoldconv import reference

OPS = torch.ops.unfoldconv
CONV = {1: uc.conv1d, 2: uc.conv2d, 3: uc.conv3d}
CONV_TRANSPOSE = {1: uc.conv_transpose1d, 2: uc.conv_transpose2d, 3: uc.conv_transpose3d}

DTYPES = [torch.float32, torch.float64, torch.int64, torch.complex128]

# Where arithmetic on 64 bits goes wrong, and around it.
WILD = [-(2**64), -(2**63), -(2**62), -(2**31), -2, -1, 0, 2**31 - 1, 2**31, 2**32, 2**40, 2**61]
WILD += [2**62 - 1, 2**62, 2**62 + 1, 2**63 - 2, 2**63 - 1, 2**63, 2**64]

# A call whose result is larger than the first and fits 64 bits is neither expected to succeed nor to fail.
MOST_ELEMENTS = 2**17
FITS = 2**63

fuzz = settings(
    max_examples=int(os.environ.get("UNFOLDCONV_FUZZ_EXAMPLES", "150")),
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


# --- what is right ----------------------------------------------------------------------------------------------------


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


def check(
    call: Callable[[], Tensor], direct: bool, shape: Sequence[int] | None, expected: Callable[[], Tensor], work: int = 1
) -> None:
    """Runs a call that must be refused or agree with what is expected.

    Args:
        call: The call; of an op if `direct`, whose refusals are RuntimeErrors.
        direct: See there.
        shape: Of the result; None if the call must be refused.
        expected: Computes the result.
        work: Elements that `expected` handles for each of the result.
    """
    if shape is None or math.prod(shape) >= FITS:
        with pytest.raises((RuntimeError if direct else uc.GeometryError, TypeError)):
            call()
        return
    if math.prod(max(1, size) for size in (*shape, work)) <= MOST_ELEMENTS:
        actual = call()
        assert actual.shape == torch.Size(shape)
        if 0 not in shape:  # what handles no element may still be asked for any number of taps
            right = expected()
            assert actual.dtype == right.dtype
            assert torch.equal(actual, right)
        return
    assume(0 in shape)
    with contextlib.suppress(RuntimeError):  # torch itself refuses some shapes of empty tensors
        assert call().shape == torch.Size(shape)


# --- what is drawn ----------------------------------------------------------------------------------------------------


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


# --- columns ----------------------------------------------------------------------------------------------------------


@fuzz
@given(sample=samples(), direct=st.booleans())
def test_unfold(sample: Sample, direct: bool) -> None:
    input = sample.tensor(sample.batch, sample.in_channels, *sample.size)
    positions = sample.positions(direct)
    shape = positions and (sample.batch, sample.in_channels * sample.taps, math.prod(positions))

    def call() -> Tensor:
        if direct:
            return OPS.im2col(input, list(sample.kernel_size), *sample.op_window)
        return uc.unfold(input, sample.kernel_size, **sample.window)

    check(call, direct, shape, lambda: gather(input, sample.kernel_size, positions, sample.read))


@fuzz
@given(
    sample=samples(),
    direct=st.booleans(),
    more_rows=st.sampled_from([0, 0, 0, 1]),
    more_positions=st.sampled_from([0, 0, 0, -1, 1]),
)
def test_fold(sample: Sample, direct: bool, more_rows: int, more_positions: int) -> None:
    positions = sample.positions(direct)
    fits = positions is not None and sample.taps <= 99 and math.prod(positions) * sample.taps <= MOST_ELEMENTS
    rows = sample.in_channels * (sample.taps if fits else 1) + more_rows
    columns = sample.tensor(sample.batch, rows, max(0, math.prod(positions) + more_positions) if fits else 3)
    valid = positions is not None and rows % sample.taps == 0 and columns.shape[2] == math.prod(positions)

    def call() -> Tensor:
        if direct:
            return OPS.col2im(columns, list(sample.size), list(sample.kernel_size), *sample.op_window)
        return uc.fold(columns, sample.size, sample.kernel_size, **sample.window)

    check(
        call,
        direct,
        (sample.batch, rows // sample.taps, *sample.size) if valid else None,
        lambda: spread(columns, sample.size, sample.kernel_size, positions, sample.read),
        work=sample.taps,
    )


@fuzz
@given(sample=samples())
def test_unfold_transpose(sample: Sample) -> None:
    input = sample.tensor(sample.batch, sample.in_channels, *sample.size)
    size = sample.transposed_size()
    shape = size and (sample.batch, sample.in_channels * sample.taps, math.prod(size))
    check(
        lambda: uc.unfold_transpose(input, sample.kernel_size, **sample.window, output_padding=sample.output_padding),
        False,
        shape,
        lambda: gather(input, sample.kernel_size, size, sample.read_transposed),
    )


# --- convolution ------------------------------------------------------------------------------------------------------

# Added to the size of an operand: mostly nothing.
SPOIL = st.sampled_from([0, 0, 0, 0, 0, 1])


@fuzz
@given(sample=samples(), direct=st.booleans(), bias=st.booleans(), spoil=st.tuples(SPOIL, SPOIL, SPOIL))
def test_conv(sample: Sample, direct: bool, bias: bool, spoil: tuple[int, int, int]) -> None:
    assume(max(sample.kernel_size) <= 9 and min(sample.kernel_size) >= 0)  # a tensor's size
    groups, inputs, outputs = sample.groups, sample.in_channels, sample.out_channels
    input = sample.tensor(sample.batch, groups * inputs + spoil[0], *sample.size)
    weight = sample.tensor(groups * outputs + spoil[1], inputs, *sample.kernel_size)
    shift = sample.tensor(len(weight) + spoil[2]) if bias else None
    positions = sample.positions(direct)
    valid = positions is not None and not spoil[0] and len(weight) % groups == 0 and not (bias and spoil[2])
    shape = (sample.batch, len(weight), *positions) if valid else None

    def call() -> Tensor:
        with uc.workspace_limit(sample.workspace):
            if direct:
                return OPS.conv(input, weight, shift, *sample.op_window, groups)
            return CONV[sample.rank](input, weight, shift, **sample.window, groups=groups)

    def expected() -> Tensor:
        columns = gather(input, sample.kernel_size, positions, sample.read)
        matrix = weight.reshape(groups, len(weight) // groups, inputs * sample.taps)
        output = product(matrix, columns, groups).reshape(sample.batch, len(weight), *positions)
        return output if shift is None else output + shift.reshape(-1, *[1] * sample.rank)

    check(call, direct, shape, expected, work=groups * inputs * sample.taps)


@fuzz
@given(sample=samples(), direct=st.booleans(), bias=st.booleans(), spoil=st.tuples(SPOIL, SPOIL))
def test_conv_transpose(sample: Sample, direct: bool, bias: bool, spoil: tuple[int, int]) -> None:
    assume(max(sample.kernel_size) <= 9 and min(sample.kernel_size) >= 0)  # a tensor's size
    groups, inputs, outputs = sample.groups, sample.in_channels, sample.out_channels
    input = sample.tensor(sample.batch, groups * inputs, *sample.size)
    weight = sample.tensor(groups * inputs + spoil[0], outputs, *sample.kernel_size)
    shift = sample.tensor(groups * outputs + spoil[1]) if bias else None
    size = sample.transposed_size(direct)
    valid = size is not None and not spoil[0] and not (bias and spoil[1])
    shape = (sample.batch, groups * outputs, *size) if valid else None

    def call() -> Tensor:
        with uc.workspace_limit(sample.workspace):
            if direct:
                return OPS.conv_input_grad(input, weight, shift, list(sample.full_size()), *sample.op_window, groups)
            return CONV_TRANSPOSE[sample.rank](
                input, weight, shift, **sample.window, output_padding=sample.output_padding, groups=groups
            )

    def expected() -> Tensor:
        columns = gather(input, sample.kernel_size, size, sample.read_transposed)
        matrix = weight.reshape(groups, inputs, outputs, sample.taps).transpose(1, 2)
        output = product(matrix.reshape(groups, outputs, inputs * sample.taps), columns, groups)
        output = output.reshape(sample.batch, groups * outputs, *size)
        return output if shift is None else output + shift.reshape(-1, *[1] * sample.rank)

    check(call, direct, shape, expected, work=groups * inputs * sample.taps)


@fuzz
@given(sample=samples(), spoil=st.tuples(SPOIL, SPOIL, SPOIL))
def test_conv_weight_grad(sample: Sample, spoil: tuple[int, int, int]) -> None:
    groups, inputs, outputs = sample.groups, sample.in_channels, sample.out_channels
    positions = sample.positions(direct=True)
    fits = positions is not None and sample.taps * math.prod(positions) <= MOST_ELEMENTS
    input = sample.tensor(sample.batch, groups * inputs, *sample.size)
    shape = [sample.batch, groups * outputs, *(positions if fits else sample.size)]
    for axis, more in zip((0, 1, 2), spoil, strict=True):
        shape[axis] += more
    grad_output = sample.tensor(*shape)
    valid = tuple(shape[2:]) == positions and shape[0] == sample.batch and shape[1] % groups == 0

    def call() -> Tensor:
        with uc.workspace_limit(sample.workspace):
            return OPS.conv_weight_grad(grad_output, input, list(sample.kernel_size), *sample.op_window, groups)

    def expected() -> Tensor:
        columns = gather(input, sample.kernel_size, positions, sample.read)
        columns = columns.reshape(sample.batch, groups, inputs * sample.taps, math.prod(positions))
        output = grad_output.reshape(sample.batch, groups, grad_output.shape[1] // groups, math.prod(positions))
        return (output @ columns.mT).sum(0).reshape(grad_output.shape[1], inputs, *sample.kernel_size)

    check(
        call,
        True,
        (grad_output.shape[1], inputs, *sample.kernel_size) if valid else None,
        expected,
        work=sample.batch * math.prod(shape[2:]),
    )


# --- the reference ----------------------------------------------------------------------------------------------------


@fuzz
@given(sample=samples(wild=False))
def test_the_reference_follows_the_index_equations(sample: Sample) -> None:
    input = sample.tensor(sample.batch, sample.in_channels, *sample.size)
    positions, size = sample.positions(), sample.transposed_size()
    if positions is None:
        with pytest.raises(ValueError, match="must fit"):
            reference.unfold_naive(input, sample.kernel_size, **sample.window)
    else:
        columns = gather(input, sample.kernel_size, positions, sample.read)
        assert torch.equal(reference.unfold_naive(input, sample.kernel_size, **sample.window), columns)
        folded = reference.fold_naive(columns, sample.size, sample.kernel_size, **sample.window)
        assert torch.equal(folded, spread(columns, sample.size, sample.kernel_size, positions, sample.read))
    if size is not None:
        transposed = reference.unfold_transpose_naive(
            input, sample.kernel_size, **sample.window, output_padding=sample.output_padding
        )
        assert torch.equal(transposed, gather(input, sample.kernel_size, size, sample.read_transposed))
