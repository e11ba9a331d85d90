"""conv1d/2d/3d and their transposes beside torch's: the same arguments, memory formats, precision and autocast."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import unfoldconv as uc
from cases import CASES, Case, channels_last, random_tensor
from compare import wide
from computations import CONV, CONV_TRANSPOSE, conv, conv_transpose, operands
from unfoldconv.reference import conv_naive, conv_transpose_naive

TORCH_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TORCH_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

each_rank = pytest.mark.parametrize("rank", [1, 2, 3])


@pytest.mark.parametrize("case", [case for case in CASES if case.symmetric], ids=lambda case: case.name)
def test_arguments_are_torchs(case: Case, device: torch.device) -> None:
    """By position and in torch's order, in double precision."""
    input, weight, bias = operands("conv", case, torch.float64, device)
    arguments = (input, weight, bias, case.stride, case.torch_padding, case.dilation, case.groups)
    torch.testing.assert_close(CONV[case.rank](*arguments), TORCH_CONV[case.rank](*arguments))
    output, weight, bias = operands("conv_transpose", case, torch.float64, device)
    arguments = (
        output, weight, bias, case.stride, case.torch_padding, case.output_padding, case.groups, case.dilation,
    )  # fmt: skip
    torch.testing.assert_close(CONV_TRANSPOSE[case.rank](*arguments), TORCH_CONV_TRANSPOSE[case.rank](*arguments))


@each_rank
def test_ints_spread_over_the_axes(rank: int, device: torch.device) -> None:
    input = random_tensor((2, 4, *(9, 8, 7)[:rank]), torch.float64, device)
    weight = random_tensor((4, 2, *(3, 2, 2)[:rank]), torch.float64, device)
    torch.testing.assert_close(
        CONV[rank](input, weight, None, 2, 1, 2, 2), TORCH_CONV[rank](input, weight, None, 2, 1, 2, 2)
    )
    torch.testing.assert_close(
        CONV_TRANSPOSE[rank](input, weight, None, 3, 1, 1, 2, 2),
        TORCH_CONV_TRANSPOSE[rank](input, weight, None, 3, 1, 1, 2, 2),
    )


@each_rank
def test_unbatched(rank: int, device: torch.device) -> None:
    input = random_tensor((4, *(6, 5, 4)[:rank]), torch.float64, device)
    weight = random_tensor((4, 4, *(3, 2, 2)[:rank]), torch.float64, device)
    bias = random_tensor((4,), torch.float64, device)
    for ours, theirs in ((CONV[rank], TORCH_CONV[rank]), (CONV_TRANSPOSE[rank], TORCH_CONV_TRANSPOSE[rank])):
        torch.testing.assert_close(ours(input, weight, bias, 2, 1), theirs(input, weight, bias, 2, 1))


@each_rank
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_same_padding_is_torchs_at_stride_1(kernel: int, rank: int, device: torch.device) -> None:
    input = random_tensor((2, 3, *(7, 6, 5)[:rank]), torch.float64, device)
    weight = random_tensor((4, 3, *(kernel,) * rank), torch.float64, device)
    for dilation, padding in itertools.product((1, 2), ("same", "valid")):
        if padding == "valid" and dilation * (kernel - 1) >= min(input.shape[2:]):
            continue
        expected = TORCH_CONV[rank](input, weight, None, 1, padding, dilation)
        torch.testing.assert_close(CONV[rank](input, weight, None, 1, padding, dilation), expected)


def test_same_padding_at_any_stride(device: torch.device) -> None:
    """ceil(size / stride) positions, the padding shared between both ends, the odd element at the high end."""
    for size, kernel, stride, dilation in itertools.product((5, 6, 7), (1, 2, 3), (1, 2, 3), (1, 2)):
        input = random_tensor((1, 2, size), torch.float64, device)
        weight = random_tensor((3, 2, kernel), torch.float64, device)
        positions = -(-size // stride)
        total = max((positions - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        expected = F.conv1d(F.pad(input, (total // 2, total - total // 2)), weight, None, stride, 0, dilation)
        actual = uc.conv1d(input, weight, stride=stride, padding="same", dilation=dilation)
        assert actual.shape[-1] == positions
        torch.testing.assert_close(actual, expected)


def test_output_padding_beyond_the_stride(device: torch.device) -> None:
    """It may be anything below the dilation; what it appends beyond a stride, no window reads."""
    input = random_tensor((2, 3, 4, 5), torch.float64, device)
    weight = random_tensor((3, 2, 3, 2), torch.float64, device)
    bias = random_tensor((2,), torch.float64, device)
    for stride, padding, output_padding in itertools.product((1, 2), (0, 1), ((3, 2), (0, 3))):
        arguments = (input, weight, bias, stride, padding, output_padding, 1, 4)
        torch.testing.assert_close(uc.conv_transpose2d(*arguments), F.conv_transpose2d(*arguments))


def test_same_padding_of_transposed_convolution(device: torch.device) -> None:
    """The output is stride times as large as the input."""
    for size, kernel, stride, dilation in itertools.product((1, 4, 5), (1, 2, 3, 4), (1, 2, 3), (1, 2)):
        input = random_tensor((1, 2, size), torch.float64, device)
        weight = random_tensor((2, 3, kernel), torch.float64, device)
        span = (kernel - 1) * dilation + 1
        total = max(span - stride, 0)
        full = F.conv_transpose1d(input, weight, None, stride, 0, 0, 1, dilation)
        expected = F.pad(full, (-(total // 2), -(total - total // 2) + max(stride - span, 0)))
        actual = uc.conv_transpose1d(input, weight, stride=stride, padding="same", dilation=dilation)
        assert actual.shape[-1] == size * stride
        torch.testing.assert_close(actual, expected)


# torch can express them and they have elements: without any, strides mean nothing.
FORMAT_CASES = [case for case in CASES if case.symmetric and case.batch > 0]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float32) for case in FORMAT_CASES]
    + [(case, torch.float64) for case in FORMAT_CASES if case.rank == 2],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_the_memory_format_of_the_result_is_torchs(
    case: Case, dtype: torch.dtype, device: torch.device, threads: Callable[[int], None]
) -> None:
    threads(2)  # on one thread torch computes some small 3-D convolutions in another way, always contiguous
    arrangements = [Tensor.contiguous, *([channels_last] if case.rank > 1 else [])]
    for arrange_first, arrange_weight in itertools.product(arrangements, repeat=2):
        what = f"{arrange_first.__name__} and {arrange_weight.__name__}"
        input, weight, bias = operands("conv", case, dtype, device)
        input, weight = arrange_first(input), arrange_weight(weight)
        expected = TORCH_CONV[case.rank](
            input, weight, bias, case.stride, case.torch_padding, case.dilation, case.groups
        )
        assert conv(case, input, weight, bias).stride() == expected.stride(), f"conv, {what}"

        output, weight, bias = operands("conv_transpose", case, dtype, device)
        output, weight = arrange_first(output), arrange_weight(weight)
        expected = TORCH_CONV_TRANSPOSE[case.rank](
            output, weight, bias, case.stride, case.torch_padding, case.output_padding, case.groups, case.dilation
        )
        assert conv_transpose(case, output, weight, bias).stride() == expected.stride(), f"conv_transpose, {what}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_results_are_as_good_as_torchs(dtype: torch.dtype, device: torch.device) -> None:
    """Over sums long enough for a 16-bit accumulator to show: the root mean square error against double precision."""
    input, weight = (
        torch.randn(2, 64, 14, 14, device=device).to(dtype),
        torch.randn(32, 64, 3, 3, device=device).to(dtype),
    )
    output = torch.randn(2, 32, 14, 14, device=device).to(dtype)
    pairs = {
        "conv": (
            uc.conv2d(input, weight, padding=1),
            F.conv2d(input, weight, padding=1),
            conv_naive(wide(input), wide(weight), padding=1),
        ),
        "conv_transpose": (
            uc.conv_transpose2d(output, weight, padding=1),
            F.conv_transpose2d(output, weight, padding=1),
            conv_transpose_naive(wide(output), wide(weight), padding=1),
        ),
    }
    for name, (ours, theirs, exact) in pairs.items():
        error, torch_error = ((wide(result) - exact).square().mean().sqrt() for result in (ours, theirs))
        assert error <= 1.5 * torch_error, f"{name}: {error} against {torch_error}"


@each_rank
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_complex32_is_as_good_as_torchs(rank: int, transposed: bool) -> None:
    """torch computes it of convolutions in float16, one for each product of real and imaginary parts."""
    ours, torchs = (CONV_TRANSPOSE[rank], TORCH_CONV_TRANSPOSE[rank]) if transposed else (CONV[rank], TORCH_CONV[rank])
    shapes = ((2, 4, *(6, 5, 4)[:rank]), (4, 4, *(3, 2, 2)[:rank]), (4,))
    leaves = [torch.randn(shape, dtype=torch.complex64).to(torch.complex32).requires_grad_() for shape in shapes]
    precise = [leaf.detach().to(torch.complex128).requires_grad_() for leaf in leaves]
    outcomes = []
    for function, arguments in ((ours, leaves), (torchs, leaves), (torchs, precise)):
        output = function(*arguments, stride=2, padding=1)
        direction = torch.full_like(output, 0.5 + 0.25j)
        outcomes.append([output.detach(), *torch.autograd.grad(output, arguments, direction)])
    for index, (actual, expected, exact) in enumerate(zip(*outcomes, strict=True)):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape) == (torch.complex32, exact.shape)
        error, torch_error = ((result.to(torch.complex128) - exact).abs().max() for result in (actual, expected))
        assert error <= 1.5 * torch_error + 2**-11 * exact.abs().max(), f"{index}: {error} against {torch_error}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
def test_autocast(dtype: torch.dtype, transposed: bool, device: torch.device) -> None:
    """Convolutions run in the dtype of torch.autocast, float64 and unfold are left alone: as torch treats its own."""
    ours, torchs = (uc.conv_transpose2d, F.conv_transpose2d) if transposed else (uc.conv2d, F.conv2d)
    wide = [torch.randn(2, 4, 6, 5, device=device), torch.randn(4, 4, 3, 3, device=device)]
    with torch.autocast(device.type, dtype):
        for operands in (wide, [wide[0].to(dtype), wide[1]], [w.double() for w in wide]):
            actual, expected = ours(*operands), torchs(*operands)
            assert actual.dtype == expected.dtype
            torch.testing.assert_close(actual, expected, rtol=2**-6, atol=2**-6)
        assert uc.unfold(wide[0], 3).dtype == torch.float32
