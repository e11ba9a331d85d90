"""conv1d/2d/3d, their transposes and the three ops behind them, against the reference in double precision."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import unfoldconv as uc
from cases import (
    CASES,
    CASES_2D,
    COMPLEX,
    CONV_DTYPES,
    INTEGERS,
    MEMORY_FORMATS,
    Case,
    channels_last,
    random_tensor,
)
from compare import assert_same_bits
from computations import (
    COMPUTATIONS,
    CONV,
    CONV_TRANSPOSE,
    assert_computes,
    conv_input_grad_op,
    conv_op,
    conv_weight_grad_op,
    expected_integers,
    operands,
)
from unfoldconv.reference import conv_naive, conv_transpose_naive

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_computation = pytest.mark.parametrize("name", COMPUTATIONS)
each_rank = pytest.mark.parametrize("rank", [1, 2, 3])


# --- against the reference --------------------------------------------------------------------------------------------


@each_computation
@each_case
def test_every_dtype(case: Case, name: str, device: torch.device) -> None:
    for dtype in CONV_DTYPES:
        assert_computes(name, case, operands(name, case, dtype, device), str(dtype))


@each_computation
@each_case
def test_every_memory_format(case: Case, name: str, device: torch.device) -> None:
    formats = set(itertools.product(MEMORY_FORMATS, ["contiguous"])) | set(
        itertools.product(["contiguous"], MEMORY_FORMATS)
    )
    formats |= set(zip(MEMORY_FORMATS, MEMORY_FORMATS, strict=True))
    for dtype in (torch.float32, torch.bfloat16):
        first, second, bias = operands(name, case, dtype, device)
        if bias is not None:
            bias = MEMORY_FORMATS["sliced"](bias)
        for first_name, second_name in sorted(formats):
            arranged = [MEMORY_FORMATS[first_name](first), MEMORY_FORMATS[second_name](second), bias]
            assert_computes(name, case, arranged, f"{dtype}, {first_name} and {second_name}")


@each_computation
@each_case
def test_a_small_workspace(case: Case, name: str, device: torch.device) -> None:
    """Chunks of a few columns each, and one that holds not even a single column."""
    for limit in (4096, 1):
        with uc.workspace_limit(limit):
            for dtype in (torch.float32, torch.float16):
                assert_computes(name, case, operands(name, case, dtype, device), f"{dtype}, {limit} bytes")


def test_the_integers(device: torch.device) -> None:
    """They wrap around, as torch's do on the CPU. What is expected is computed there: torch convolves none on CUDA."""
    for case, (name, (functions, _, _)) in itertools.product(CASES, COMPUTATIONS.items()):
        for dtype in INTEGERS:
            tensors = operands(name, case, dtype, "cpu")
            expected = expected_integers(name, case, tensors)
            for function in functions:
                actual = function(case, *(tensor if tensor is None else tensor.to(device) for tensor in tensors))
                assert actual.device.type == device.type
                assert_same_bits(actual.cpu().contiguous(), expected, f"{case.name}, {name}, {dtype}")


@each_case
def test_the_gradients_of_integers_are_adjoint(case: Case) -> None:
    """Exactly: <conv(x, w), y> = <x, input_grad(y, w)> = <w, weight_grad(y, x)>, all of them wrapping around."""
    input, weight, output = (
        random_tensor(shape, torch.int64) for shape in (case.input_shape, case.weight_shape, case.output_shape)
    )
    product = (conv_op(case, input, weight, None) * output).sum()
    assert (conv_input_grad_op(case, output, weight, None) * input).sum() == product
    assert (conv_weight_grad_op(case, output, input, None) * weight).sum() == product


# --- properties -------------------------------------------------------------------------------------------------------


@each_rank
def test_results_do_not_depend_on_the_run_or_the_threads(rank: int, threads: Callable[[int], None]) -> None:
    """Problems large enough to be cut into tasks for several threads, with a large and a small workspace."""
    size = ((600,), (30, 25), (11, 10, 9))[rank - 1]
    case = Case(
        name=f"threads-{rank}d",
        batch=2,
        in_channels=16,
        out_channels=24,
        input_size=size,
        kernel_size=(3, 2, 2)[:rank],
        stride=(1, 2, 1)[:rank],
        padding=((1, 1), (0, 1), (0, 0))[:rank],
        dilation=(1, 1, 2)[:rank],
        groups=2,
        bias=True,
    )
    for limit, (name, (functions, _, _)) in itertools.product((2**21, 2**14), COMPUTATIONS.items()):
        tensors = operands(name, case, torch.float32, "cpu")
        with uc.workspace_limit(limit):
            threads(1)
            first = functions[-1](case, *tensors)
            for count in (1, 2, 3):
                threads(count)
                what = f"{name}, workspace of {limit} bytes, {count} threads"
                assert_same_bits(functions[-1](case, *tensors), first, what)
                assert_computes(name, case, tensors, what)


def test_no_random_summation_on_a_device(device: torch.device) -> None:
    input, weight = torch.randn(4, 16, 20, 20, device=device), torch.randn(16, 16, 3, 3, device=device)
    window = ([1, 1], [1, 1], [1, 1], [1, 1], 1)
    ops = torch.ops.unfoldconv
    for compute in (
        lambda: ops.conv(input, weight, None, *window),
        lambda: ops.conv_input_grad(input, weight, None, [20, 20], *window),
        lambda: ops.conv_weight_grad(input, input, [3, 3], *window),
    ):
        assert_same_bits(compute(), compute())


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
def test_lazily_conjugated_and_negated_views(dtype: torch.dtype, device: torch.device) -> None:
    for case, name in itertools.product(CASES_2D[:4], COMPUTATIONS):
        for views in itertools.product((Tensor.clone, Tensor.conj, torch._neg_view), repeat=2):
            first, second, bias = operands(name, case, dtype, device)
            bias = None if bias is None else bias.conj()
            assert_computes(name, case, [views[0](first), views[1](second), bias], f"{case.name}, {views}")


def test_a_bias_may_be_any_vector(device: torch.device) -> None:
    input, weight = (
        random_tensor((1, 2, 4, 4), torch.float32, device),
        random_tensor((3, 2, 2, 2), torch.float32, device),
    )
    for bias in (
        torch.randn(6, device=device)[::2],
        torch.ones(1, device=device).expand(3),
        torch.randn(5, device=device)[2:],
    ):
        expected = F.conv2d(input, weight) + bias[:, None, None]
        torch.testing.assert_close(uc.conv2d(input, weight, bias), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.complex128], ids=str)
@pytest.mark.parametrize("channels", [(1, 1, 2), (2, 2, 3), (6, 4, 1)], ids=str)
def test_numbers_that_no_window_uses_may_be_any(
    channels: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    """The stride of a single position, the dilation of a single tap: sizes computed from them would not fit 63 bits."""
    inputs, outputs, groups = channels
    ops = torch.ops.unfoldconv
    image = random_tensor((2, groups * inputs, 1, 3), dtype, device)
    weight = random_tensor((groups * outputs, inputs, 3, 1), dtype, device)

    def compute(stride: int, dilation: int) -> tuple[Tensor, Tensor, Tensor]:
        window = ([2, stride], [2, 1], [1, 0], [1, dilation], groups)
        output = ops.conv(image, weight, None, *window)
        return (
            output,
            ops.conv_input_grad(output, weight, None, [1, 3], *window),
            ops.conv_weight_grad(output, image, [3, 1], *window),
        )

    near = compute(9, 1)
    for far in (2**40, 2**61, 2**62 + 1):
        for actual, expected in zip(compute(far, far), near, strict=True):
            assert_same_bits(actual, expected, str(far))


# --- nothing to compute ----------------------------------------------------------------------------------------------


@each_rank
@pytest.mark.parametrize("arrange", [Tensor.contiguous, channels_last], ids=["contiguous", "channels_last"])
def test_sums_of_nothing_are_zero(rank: int, arrange: Callable[[Tensor], Tensor], device: torch.device) -> None:
    """No images and no output channels give an empty result; no input channels give the bias."""
    size, kernel_size = (4, 3, 3)[:rank], (2, 2, 2)[:rank]

    def compare(function: Callable[..., Tensor], expected: Tensor, *operands: Tensor | None, groups: int) -> None:
        # Memory that is likely to be the result's, so that what is not written shows.
        torch.full_like(expected, torch.nan)
        what = f"{function.__name__}, {[operand is not None and operand.shape for operand in operands]}, {groups}"
        assert_same_bits(function(*operands, groups=groups).contiguous(), expected, what)

    for batch, in_channels, out_channels, groups in itertools.product((0, 2), (0, 4), (0, 4), (1, 2)):
        input = arrange(torch.ones(batch, in_channels, *size, device=device))
        for bias in (None, torch.ones(out_channels, device=device)):
            weight = arrange(torch.ones(out_channels, in_channels // groups, *kernel_size, device=device))
            expected = conv_naive(input, weight, bias, groups=groups)
            compare(CONV[rank], expected, input, weight, bias, groups=groups)
            weight = arrange(torch.ones(in_channels, out_channels // groups, *kernel_size, device=device))
            expected = conv_transpose_naive(input, weight, bias, groups=groups)
            compare(CONV_TRANSPOSE[rank], expected, input, weight, bias, groups=groups)


def test_a_sum_of_nothing_of_few_columns_is_written(device: torch.device) -> None:
    """Two columns without terms, in memory that was used before: an engine that reads terms as vectors writes none."""
    input, weight = torch.ones(1, 0, 1, 2, 1, device=device), torch.ones(0, 2, 1, 1, 2, device=device)
    for _ in range(20):
        torch.full((1, 2, 1, 2, 1), torch.nan, device=device)
        output = uc.conv_transpose3d(input, weight, stride=(1, 1, 2), padding=((0, 0), (0, 0), (0, 1)))
        assert_same_bits(output, torch.zeros_like(output))


def test_an_empty_result_has_strides_that_fit_63_bits(device: torch.device) -> None:
    """torch makes no such tensor either: no element, but the distance of two images would be 6 * 2^62."""
    output, weight = torch.ones(1, 1, 1, 2, device=device), torch.ones(1, 6, 1, 1, device=device)
    with pytest.raises(RuntimeError, match=r"output must take fewer than 2\^63 bytes, but got size \(1, 6, 0, "):
        torch.ops.unfoldconv.conv_input_grad(output, weight, None, [0, 2**62], [1, 2**61], [1, 0], [0, 0], [1, 1], 1)


def test_an_empty_result_takes_no_time_whatever_its_size(device: torch.device) -> None:
    """2^40 positions of no images or no channels: nothing may be counted one by one."""
    far, ones = 2**40, torch.ones(1, 1, 1, device=device)
    for batch, channels in ((0, 1), (1, 0)):
        weight = torch.ones(1, channels, 1, device=device)
        size = far + 1
        assert uc.conv_transpose1d(torch.ones(batch, 1, 2, device=device), weight, stride=far).shape == (
            batch,
            channels,
            size,
        )
        assert uc.conv1d(torch.ones(batch, 1, 1, device=device), weight.transpose(0, 1), padding=((0, far),)).shape == (
            batch,
            channels,
            size,
        )
    assert uc.unfold(ones[:0], (1,), padding=((0, far),)).shape == (0, 1, far + 1)
    assert uc.fold(ones[:0], (far,), (1,), stride=far).shape == (0, 1, far)


def test_the_gradient_of_no_images_is_zero(device: torch.device) -> None:
    case = next(case for case in CASES_2D if case.name.startswith("empty_batch"))
    output, input, _ = operands("conv_weight_grad", case, torch.float32, device)
    assert_same_bits(conv_weight_grad_op(case, output, input, None), torch.zeros(case.weight_shape, device=device))
