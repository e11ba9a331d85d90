"""conv1d/2d/3d, their transposes and the three ops behind them, against the reference in double precision and torch."""

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
from compare import assert_same_bits, wide
from computations import (
    COMPUTATIONS,
    CONV,
    CONV_TRANSPOSE,
    assert_computes,
    conv,
    conv_input_grad_op,
    conv_op,
    conv_transpose,
    conv_weight_grad_op,
    operands,
)
from unfoldconv.reference import conv_naive, conv_transpose_naive

TORCH_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TORCH_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

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
    for first_name, second_name in sorted(formats):
        for dtype in (torch.float32, torch.bfloat16):
            first, second, bias = operands(name, case, dtype, device)
            first, second = MEMORY_FORMATS[first_name](first), MEMORY_FORMATS[second_name](second)
            if bias is not None:
                bias = MEMORY_FORMATS["sliced"](bias)
            assert_computes(name, case, [first, second, bias], f"{dtype}, {first_name} and {second_name}")


@each_computation
@each_case
def test_a_small_workspace(case: Case, name: str, device: torch.device) -> None:
    """Chunks of a few columns each, and one that holds not even a single column."""
    for limit in (4096, 1):
        with uc.workspace_limit(limit):
            for dtype in (torch.float32, torch.float16):
                assert_computes(name, case, operands(name, case, dtype, device), f"{dtype}, {limit} bytes")


def test_the_integers(device: torch.device) -> None:
    """They wrap around, as torch's do on the CPU."""
    if device.type != "cpu":
        pytest.skip("torch convolves no integers on CUDA")
    for case, name in itertools.product(CASES, COMPUTATIONS):
        functions, expected, _ = COMPUTATIONS[name]
        if name == "conv_weight_grad":  # autograd knows no integers: from the identity below
            continue
        for dtype in INTEGERS:
            tensors = operands(name, case, dtype, device)
            for function in functions:
                actual = function(case, *tensors)
                assert_same_bits(actual.contiguous(), expected(case, *tensors), f"{case.name}, {name}, {dtype}")


@each_case
def test_the_gradients_of_integers_are_adjoint(case: Case) -> None:
    """Exactly: <conv(x, w), y> = <x, input_grad(y, w)> = <w, weight_grad(y, x)>, all of them wrapping around."""
    input, weight, output = (
        random_tensor(shape, torch.int64) for shape in (case.input_shape, case.weight_shape, case.output_shape)
    )
    product = (conv_op(case, input, weight, None) * output).sum()
    assert (conv_input_grad_op(case, output, weight, None) * input).sum() == product
    assert (conv_weight_grad_op(case, output, input, None) * weight).sum() == product


# --- against torch ----------------------------------------------------------------------------------------------------


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
def test_sums_of_nothing_are_zero(rank: int, device: torch.device) -> None:
    """No images and no output channels give an empty result; no input channels give the bias."""
    size, kernel_size = (4, 3, 3)[:rank], (2, 2, 2)[:rank]
    for batch, in_channels, out_channels, groups in itertools.product((0, 2), (0, 4), (0, 4), (1, 2)):
        what = f"batch {batch}, channels {in_channels} to {out_channels}, groups {groups}"
        input = torch.ones(batch, in_channels, *size, device=device)
        bias = torch.ones(out_channels, device=device)
        weight = torch.ones(out_channels, in_channels // groups, *kernel_size, device=device)
        expected = conv_naive(input, weight, bias, groups=groups)
        assert_same_bits(CONV[rank](input, weight, bias, groups=groups), expected, what)
        weight = torch.ones(in_channels, out_channels // groups, *kernel_size, device=device)
        expected = conv_transpose_naive(input, weight, bias, groups=groups)
        assert_same_bits(CONV_TRANSPOSE[rank](input, weight, bias, groups=groups), expected, what)


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
