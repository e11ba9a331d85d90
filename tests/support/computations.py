"""The computations that the tests of convolutions run, ours and the reference's, and operands for them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import unfoldconv as uc
from cases import Case, random_tensor
from compare import assert_within_rounding, bits, wide
from unfoldconv.reference import conv_naive, conv_transpose_naive, unfold_conv, unfold_naive

CONV = {1: uc.conv1d, 2: uc.conv2d, 3: uc.conv3d}
CONV_TRANSPOSE = {1: uc.conv_transpose1d, 2: uc.conv_transpose2d, 3: uc.conv_transpose3d}


def conv(case: Case, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return CONV[case.rank](input, weight, bias, **case.window, groups=case.groups)


def conv_op(case: Case, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.unfoldconv.conv(input, weight, bias, *case.op_window, case.groups)


def conv_expected(case: Case, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return conv_naive(input, weight, bias, **case.window, groups=case.groups)


def conv_transpose(case: Case, output: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return CONV_TRANSPOSE[case.rank](
        output, weight, bias, **case.window, output_padding=case.output_padding, groups=case.groups
    )


def conv_input_grad_op(case: Case, output: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.unfoldconv.conv_input_grad(
        output, weight, bias, list(case.input_size), *case.op_window, case.groups
    )


def conv_transpose_expected(case: Case, output: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return conv_transpose_naive(
        output, weight, bias, **case.window, output_padding=case.output_padding, groups=case.groups
    )


def conv_weight_grad_op(case: Case, output: Tensor, input: Tensor, bias: None) -> Tensor:
    return torch.ops.unfoldconv.conv_weight_grad(output, input, list(case.kernel_size), *case.op_window, case.groups)


def conv_weight_grad_expected(case: Case, output: Tensor, input: Tensor, bias: None) -> Tensor:
    """The linear map itself: for complex numbers the gradient is that of the conjugated input."""
    weight = output.new_zeros(case.weight_shape, requires_grad=True)
    result = unfold_conv(input.conj(), weight, None, **case.window, groups=case.groups)
    return torch.autograd.grad(result, weight, output)[0]


Compute = Callable[[Case, Tensor, Tensor, Any], Tensor]

# name: the functions that compute it, the expected one, and the shapes of the operands and the bias.
COMPUTATIONS: dict[str, tuple[list[Compute], Compute, Callable[[Case], tuple[tuple[int, ...], ...]]]] = {
    "conv": (
        [conv, conv_op],
        conv_expected,
        lambda case: (case.input_shape, case.weight_shape, (case.out_channels,)),
    ),
    "conv_transpose": (
        [conv_transpose, conv_input_grad_op],
        conv_transpose_expected,
        lambda case: (case.output_shape, case.weight_shape, (case.in_channels,)),
    ),
    "conv_weight_grad": (
        [conv_weight_grad_op],
        conv_weight_grad_expected,
        lambda case: (case.output_shape, case.input_shape, ()),
    ),
}


def operands(name: str, case: Case, dtype: torch.dtype, device: torch.device | str) -> list[Tensor | None]:
    shapes = COMPUTATIONS[name][2](case)
    tensors: list[Tensor | None] = [random_tensor(shape, dtype, device) for shape in shapes]
    if not case.bias or name == "conv_weight_grad":
        tensors[2] = None
    return tensors


def _integer_weight_grad(case: Case, output: Tensor, input: Tensor) -> Tensor:
    """Which autograd does not know: grad_output times the columns, modulo 2^bits."""
    batch, groups = input.shape[0], case.groups
    columns = unfold_naive(input, case.kernel_size, **case.window).long()
    grads = output.long().reshape(batch, groups, case.out_channels // groups, columns.shape[-1])
    products = grads @ columns.reshape(batch, groups, case.in_channels // groups * case.taps, columns.shape[-1]).mT
    return products.sum(0).to(output.dtype).reshape(case.weight_shape)


def expected_integers(name: str, case: Case, tensors: Sequence[Any]) -> Tensor:
    """The result of operands on the CPU, to the bit: integers wrap around."""
    if name == "conv_weight_grad":
        return _integer_weight_grad(case, *tensors[:2])
    return COMPUTATIONS[name][1](case, *tensors)


class _Operands:
    """Tensors that are equal to others of the same numbers, whatever their strides."""

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        self.tensors = tensors
        self._key = tuple(
            t if t is None else (t.shape, t.dtype, t.device, bits(t).cpu().numpy().tobytes()) for t in tensors
        )

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Operands) and self._key == other._key


# The reference goes tap by tap or position by position in Python, and many tests are about the same numbers.
@functools.lru_cache(maxsize=128)
def _expected_of(name: str, case: Case, operands: _Operands) -> tuple[Tensor, Tensor]:
    exact = [None if tensor is None else wide(tensor) for tensor in operands.tensors]
    compute = COMPUTATIONS[name][1]
    return compute(case, *exact), compute(case, *(None if tensor is None else tensor.abs() for tensor in exact))


def expected_of(name: str, case: Case, tensors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """The result in double precision, and what the sums would be if every term were its absolute value."""
    return _expected_of(name, case, _Operands(tensors))


def _by_torch(name: str, case: Case, first: Tensor, second: Tensor, bias: Tensor | None) -> Tensor:
    """torch's own convolution of an image with the padding about it, or a gradient of that."""
    padding = [size for pair in reversed(case.padding) for size in pair]
    nothing = [0] * case.rank
    window = (list(case.stride), nothing, list(case.dilation), False, nothing, case.groups)
    if name == "conv":
        return torch.ops.aten.convolution(torch.nn.functional.pad(first, padding), second, bias, *window)
    if name == "conv_weight_grad":
        image, weight = torch.nn.functional.pad(second, padding), first.new_empty(case.weight_shape)
        mask = [False, True, False]
        return torch.ops.aten.convolution_backward(first, image, weight, None, *window, mask)[1]
    image = torch.nn.functional.pad(first.new_empty(case.input_shape), padding)
    gradient, _, _ = torch.ops.aten.convolution_backward(first, image, second, None, *window, [True, False, False])
    gradient = torch.nn.functional.pad(gradient, [-size for size in padding])
    return gradient if bias is None else gradient + bias.view(-1, *[1] * case.rank)


# Quick even where an allocation takes long, as it does under AddressSanitizer: the reference makes some for each tap.
@functools.lru_cache(maxsize=128)
def _expected_by_torch(name: str, case: Case, operands: _Operands) -> tuple[Tensor, Tensor]:
    exact = [None if tensor is None else wide(tensor) for tensor in operands.tensors]
    return _by_torch(name, case, *exact), _by_torch(
        name, case, *(None if tensor is None else tensor.abs() for tensor in exact)
    )


def expected_by_torch(name: str, case: Case, tensors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """The same as `expected_of`, of real numbers, by torch's own convolution."""
    return _expected_by_torch(name, case, _Operands(tensors))


def assert_computes(name: str, case: Case, tensors: list[Tensor | None], what: str) -> None:
    exact, magnitude = expected_of(name, case, tensors)
    for function in COMPUTATIONS[name][0]:
        actual = function(case, *tensors)
        assert actual.dtype == tensors[0].dtype
        assert actual.device == tensors[0].device
        assert_within_rounding(actual, exact, magnitude, f"{function.__name__}, {what}")
