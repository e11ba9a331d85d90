"""Random geometry, valid and not, at every op and function: what is valid has the right result, all else is refused."""

import contextlib
import math
import os
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import unfoldconv as uc
from computations import CONV, CONV_TRANSPOSE
from samples import FITS, Sample, gather, product, samples, spread
from unfoldconv import reference

OPS = torch.ops.unfoldconv

# A call whose result is larger than this and fits 64 bits is neither expected to succeed nor to fail.
MOST_ELEMENTS = 2**17

fuzz = settings(
    max_examples=int(os.environ.get("UNFOLDCONV_FUZZ_EXAMPLES", "150")),
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


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
        work=sample.taps,  # columns without an element may have more taps than 63 bits hold bytes
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
