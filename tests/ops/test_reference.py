"""The reference against torch's own functions, and against sums done by hand."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from cases import (
    CASES,
    CASES_2D,
    COMPLEX,
    FLOATS,
    INTEGERS,
    UNFOLD_DTYPES,
    Case,
    random_tensor,
)
from compare import assert_same_bits
from unfoldconv import reference
from unfoldconv.reference import (
    UnfoldConv,
    UnfoldConvFunction,
    conv_naive,
    conv_transpose_naive,
    fold_naive,
    unfold_conv,
    unfold_naive,
    unfold_transpose_naive,
)

TORCH_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TORCH_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
TORCH_MODULE = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def small_integers(shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers whose sums of products are exact, so that identities hold without a tolerance."""
    return torch.randint(-9, 10, shape)


def torch_conv(case: Case, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    padded = F.pad(input, [amount for pair in reversed(case.padding) for amount in pair])
    # A dilated kernel is a larger one with zeros between its taps; torch dilates no narrow integers itself.
    spread = weight.new_zeros(
        *weight.shape[:2], *((k - 1) * d + 1 for k, d in zip(case.kernel_size, case.dilation, strict=True))
    )
    spread[(..., *(slice(None, None, d) for d in case.dilation))] = weight
    return TORCH_CONV[case.rank](padded, spread, bias, case.stride, 0, 1, case.groups)


def parameters(case: Case, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    bias = random_tensor((case.out_channels,), dtype) if case.bias else None
    return random_tensor(case.input_shape, dtype), random_tensor(case.weight_shape, dtype), bias


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_one_axis_by_hand() -> None:
    input = torch.tensor([[[1, 2, 3, 4]]])
    columns = unfold_naive(input, (2,), padding=1, dilation=2)
    assert columns.tolist() == [[[0, 1, 2, 3], [2, 3, 4, 0]]]
    assert fold_naive(columns, (4,), (2,), padding=1, dilation=2).tolist() == [[[1, 4, 6, 4]]]
    weight = torch.tensor([[[10, 1]]])
    assert conv_naive(input, weight, padding=1, dilation=2).tolist() == [[[2, 13, 24, 30]]]


def test_two_axes_by_hand() -> None:
    input = torch.tensor([[[[1, 2, 3], [4, 5, 6]]]])
    assert unfold_naive(input, 2).tolist() == [[[1, 2], [2, 3], [4, 5], [5, 6]]]
    assert unfold_naive(input, (1, 2), stride=(1, 2), padding=((0, 0), (0, 1))).tolist() == [
        [[1, 3, 4, 6], [2, 0, 5, 0]]
    ]
    assert conv_naive(input, torch.tensor([[[[1, 0], [0, -1]]]]), torch.tensor([7])).tolist() == [[[[3, 3]]]]


def test_three_axes_by_hand() -> None:
    input = torch.arange(8).reshape(1, 1, 2, 2, 2)
    assert unfold_naive(input, (1, 2, 1)).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    weight = torch.tensor([1, 100]).reshape(1, 1, 1, 2, 1)
    assert conv_naive(input, weight).tolist() == [[[[[200, 301]], [[604, 705]]]]]


def test_transposed_by_hand() -> None:
    input = torch.tensor([[[1, 2]]])
    columns = unfold_transpose_naive(input, (3,), stride=2)
    assert columns.tolist() == [[[1, 0, 2, 0, 0], [0, 1, 0, 2, 0], [0, 0, 1, 0, 2]]]
    cropped = unfold_transpose_naive(input, (3,), stride=2, padding=((1, 0),), output_padding=1)
    assert cropped.tolist() == [[[0, 2, 0, 0, 0], [1, 0, 2, 0, 0], [0, 1, 0, 2, 0]]]
    weight = torch.tensor([[[1, 2, 3]]])
    assert conv_transpose_naive(input, weight, stride=2).tolist() == [[[1, 2, 5, 4, 6]]]


def test_channels_come_before_taps() -> None:
    input = torch.tensor([[[1, 2], [3, 4]]])  # two channels
    assert unfold_naive(input, (2,)).tolist() == [[[1], [2], [3], [4]]]


# --- against torch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES_2D if case.symmetric], ids=lambda case: case.name)
def test_unfold_and_fold_are_torchs(case: Case) -> None:
    arguments = {"dilation": case.dilation, "padding": case.torch_padding, "stride": case.stride}
    for dtype in (*FLOATS, *COMPLEX, torch.bool):
        input = random_tensor(case.input_shape, dtype)
        assert_same_bits(
            unfold_naive(input, case.kernel_size, **case.window), F.unfold(input, case.kernel_size, **arguments)
        )
    columns = small_integers(case.columns_shape).double()
    folded = F.fold(columns, case.input_size, case.kernel_size, **arguments)
    assert torch.equal(fold_naive(columns, case.input_size, case.kernel_size, **case.window), folded)


@each_case
def test_conv_is_torchs(case: Case) -> None:
    for dtype in (torch.float64, torch.complex128):
        arguments = parameters(case, dtype)
        torch.testing.assert_close(
            conv_naive(*arguments, **case.window, groups=case.groups), torch_conv(case, *arguments)
        )
    for dtype in INTEGERS:  # wraps around where it overflows, as torch does
        arguments = parameters(case, dtype)
        assert_same_bits(conv_naive(*arguments, **case.window, groups=case.groups), torch_conv(case, *arguments))


@each_case
def test_conv_transpose_is_torchs(case: Case) -> None:
    input = random_tensor(case.output_shape, torch.float64)
    weight = random_tensor(case.weight_shape, torch.float64)
    bias = random_tensor((case.in_channels,), torch.float64) if case.bias else None
    full = TORCH_CONV_TRANSPOSE[case.rank](
        input, weight, bias, case.stride, 0, case.output_padding, case.groups, case.dilation
    )
    expected = F.pad(full, [-amount for pair in reversed(case.padding) for amount in pair])
    assert expected.shape == case.input_shape
    actual = conv_transpose_naive(
        input, weight, bias, **case.window, output_padding=case.output_padding, groups=case.groups
    )
    torch.testing.assert_close(actual, expected)


# --- identities -------------------------------------------------------------------------------------------------------


@each_case
def test_fold_is_the_adjoint_of_unfold(case: Case) -> None:
    input, columns = small_integers(case.input_shape), small_integers(case.columns_shape)
    unfolded = unfold_naive(input, case.kernel_size, **case.window)
    folded = fold_naive(columns, case.input_size, case.kernel_size, **case.window)
    assert unfolded.shape == columns.shape
    assert folded.shape == input.shape
    assert (unfolded * columns).sum() == (input * folded).sum()


@each_case
def test_transposed_convolution_is_the_adjoint_of_convolution(case: Case) -> None:
    input, weight, output = (
        small_integers(shape) for shape in (case.input_shape, case.weight_shape, case.output_shape)
    )
    forward = conv_naive(input, weight, **case.window, groups=case.groups)
    backward = conv_transpose_naive(
        output, weight, **case.window, output_padding=case.output_padding, groups=case.groups
    )
    assert (forward * output).sum() == (input * backward).sum()


def test_a_negative_padding_crops() -> None:
    input = small_integers((2, 3, 8, 7))
    window = {"stride": (2, 1), "padding": ((-1, 2), (1, -2))}
    cropped = F.pad(input, (1, -2, -1, 2))
    assert torch.equal(unfold_naive(input, (3, 2), **window), unfold_naive(cropped, (3, 2), stride=(2, 1)))
    columns = small_integers(tuple(unfold_naive(input, (3, 2), **window).shape))
    folded = fold_naive(columns, (8, 7), (3, 2), **window)
    assert torch.equal(folded, F.pad(fold_naive(columns, (9, 6), (3, 2), stride=(2, 1)), (-1, 2, 1, -2)))


# --- what was once wrong in code like this ----------------------------------------------------------------------------


def test_padding_0_keeps_the_whole_image() -> None:
    columns = torch.ones(1, 4, 9)
    assert fold_naive(columns, (4, 4), (2, 2), padding=0).tolist()[0][0][0] == [1, 2, 2, 1]
    assert fold_naive(columns[..., :3], (2, 4), (2, 2), padding=((0, 0), (0, 0))).sum() == 12


@pytest.mark.parametrize("dtype", UNFOLD_DTYPES, ids=str)
def test_zeros_have_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    input = random_tensor((1, 1, 3), dtype)
    columns = unfold_naive(input, (2,), padding=1)
    assert columns.dtype == dtype
    assert columns.is_contiguous()
    assert_same_bits(columns[:, :, 1:3], torch.stack([input[..., :2], input[..., 1:]], dim=2).flatten(1, 2))


def test_zeros_are_on_the_device_of_the_input(device: torch.device) -> None:
    for place in (device, torch.device("meta")):
        input = torch.ones(1, 2, 5, 5, device=place)
        columns = unfold_naive(input, 3, padding=1)
        assert columns.device.type == place.type
        assert fold_naive(columns, (5, 5), 3, padding=1).device.type == place.type
        assert unfold_transpose_naive(input, 3, padding=1).device.type == place.type


@pytest.mark.parametrize(
    "needed",
    [set(names) for n in (1, 2, 3) for names in itertools.combinations("xwb", n)],
    ids=lambda names: "".join(sorted(names)),
)
def test_only_needed_gradients_are_computed(needed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    input, weight, bias = (
        random_tensor((2, 3, 6), torch.float64),
        random_tensor((4, 3, 2), torch.float64),
        torch.zeros(4).double(),
    )
    for name, tensor in zip("xwb", (input, weight, bias), strict=True):
        tensor.requires_grad_(name in needed)
    output = unfold_conv(input, weight, bias)

    used = []
    for name in ("unfold_naive", "fold_naive"):
        original = getattr(reference, name)
        monkeypatch.setattr(
            reference, name, lambda *args, name=name, original=original: used.append(name) or original(*args)
        )
    output.sum().backward()
    assert used == ["fold_naive"] * ("x" in needed) + ["unfold_naive"] * ("w" in needed)
    assert [tensor.grad is not None for tensor in (input, weight, bias)] == [name in needed for name in "xwb"]


# --- gradients written by hand ----------------------------------------------------------------------------------------


@each_case
def test_gradients_are_those_of_torchs_convolution(case: Case) -> None:
    arguments = [None if tensor is None else tensor.requires_grad_() for tensor in parameters(case, torch.float64)]
    needed = [tensor for tensor in arguments if tensor is not None]
    grad_output = random_tensor(case.output_shape, torch.float64)
    actual = torch.autograd.grad(unfold_conv(*arguments, *case.window.values(), case.groups), needed, grad_output)
    expected = torch.autograd.grad(torch_conv(case, *arguments), needed, grad_output)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_gradients_of_every_order(rank: int, dtype: torch.dtype) -> None:
    tensors = [
        random_tensor(shape, dtype).requires_grad_()
        for shape in ((2, 2, *(5, 3, 2)[:rank]), (2, 1, *(2, 2, 1)[:rank]), (2,))
    ]

    def function(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return UnfoldConvFunction.apply(input, weight, bias, (2, 1, 1)[:rank], ((1, 0), (0, 2), (0, 1))[:rank], 1, 2)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_backward_runs_twice() -> None:
    weight = torch.ones(1, 1, 2, requires_grad=True)
    output = unfold_conv(torch.ones(1, 1, 3), weight)
    output.sum().backward(retain_graph=True)
    output.sum().backward()
    assert weight.grad.tolist() == [[[4, 4]]]


# --- the module -------------------------------------------------------------------------------------------------------


def test_the_first_example() -> None:
    input = torch.randn(16, 3, 32, 32)
    module = UnfoldConv(3, 64, kernel_size=(3, 3), stride=1, padding=1)
    output = module(input)
    assert output.shape == (16, 64, 32, 32)
    torch.testing.assert_close(output, F.conv2d(input, module.weight, module.bias, padding=1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_module_has_the_parameters_of_torchs(rank: int, bias: bool) -> None:
    arguments = {
        "kernel_size": (3, 2, 4)[:rank],
        "stride": (2, 1, 2)[:rank],
        "padding": (1, 0, 2)[:rank],
        "dilation": (1, 2, 1)[:rank],
        "groups": 2,
        "bias": bias,
        "dtype": torch.float64,
    }
    torch.manual_seed(1)
    ours = UnfoldConv(4, 6, **arguments)
    torch.manual_seed(1)
    theirs = TORCH_MODULE[rank](4, 6, **arguments)
    for (name, parameter), (torch_name, torch_parameter) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert name == torch_name
        assert_same_bits(parameter.detach(), torch_parameter.detach())

    fresh = UnfoldConv(4, 6, **arguments)
    fresh.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(fresh.state_dict())
    input = random_tensor((2, 4, *(7, 8, 6)[:rank]), torch.float64)
    torch.testing.assert_close(fresh(input), theirs(input))


def test_the_module_shows_its_arguments() -> None:
    assert repr(UnfoldConv(2, 4, (3,), padding=(0,), bias=False)) == (
        "UnfoldConv(2, 4, kernel_size=(3,), stride=(1,), padding=((0, 0),), dilation=(1,), groups=1, bias=False)"
    )


# --- refused calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: unfold_naive(x, (2, 0)), "kernel_size .* at least 1, but got"),
        (lambda x: unfold_naive(x, 2, stride=(1, 0)), "stride .* at least 1, but got"),
        (lambda x: unfold_naive(x, 2, dilation=(1, 1, 1)), "dilation must be an int or 2 ints"),
        (lambda x: unfold_naive(x, 2, padding=((1, 2, 3), 1)), "padding must be"),
        (lambda x: unfold_naive(x, (2, 2, 2)), "3 spatial axes, but got"),
        (lambda x: unfold_naive(x, 6), "must fit the padded input, but it spans"),
        (lambda x: fold_naive(torch.ones(1, 7, 9), (4, 4), 2), "multiple of 4 rows and 9 positions, but got 7 and 9"),
        (lambda x: fold_naive(torch.ones(1, 8, 8), (4, 4), 2), "but got 8 and 8"),
        (lambda x: unfold_transpose_naive(x, 2, padding=3), "padding must leave an output, but got"),
        (lambda x: unfold_transpose_naive(x[..., :0], 2), "none empty, but got"),
        (lambda x: conv_naive(x, torch.ones(2, 1, 2, 2), groups=0), "groups must be positive"),
        (lambda x: conv_naive(x, torch.ones(3, 1, 2, 2), groups=2), "divide the channels, but got 2 for 3"),
        (lambda x: UnfoldConv(3, 4, groups=2), "divide the channels, but got 2 for 3, 4"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[torch.Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.ones(1, 2, 4, 4))
