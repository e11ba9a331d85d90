"""What the CPU engines must do on an instruction set: test_engines.py asks it of those that the processor has, and
amx/engines.py of AMX on a model of it."""

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

import unfoldconv as uc
from cases import Case, channels_last
from compare import assert_same_bits, assert_within_rounding, wide
from computations import COMPUTATIONS, expected_by_torch, expected_of, operands
from instruction_sets import set_isa

ARRANGEMENTS: tuple[Callable[[Tensor], Tensor], ...] = (Tensor.contiguous, channels_last)


def op(name: str) -> Callable[..., Tensor]:
    """The op itself: it takes cropping padding, which the functions refuse."""
    return COMPUTATIONS[name][0][-1]


def check_values(case: Case, name: str, dtype: torch.dtype, isas: Iterable[str]) -> None:
    """Contiguous and channels_last operands, in all four pairs, against float64 of torch."""
    tensors = operands(name, case, dtype, "cpu")
    exact, magnitude = expected_by_torch(name, case, tensors)
    for first, second in itertools.product(ARRANGEMENTS, repeat=2):
        arranged = [first(tensors[0]), second(tensors[1]), tensors[2]]
        for isa in isas:
            set_isa(isa)
            what = f"{dtype}, {isa}, {first.__name__} and {second.__name__}"
            assert_within_rounding(op(name)(case, *arranged), exact, magnitude, what)


def check_small_workspaces(case: Case, name: str, dtype: torch.dtype) -> None:
    """An engine cuts the problem up more finely, or leaves it to the columns."""
    for arrange in ARRANGEMENTS:
        first, second, bias = operands(name, case, dtype, "cpu")
        exact, magnitude = expected_by_torch(name, case, [first, second, bias])
        for limit in (2**16, 2**12):
            with uc.workspace_limit(limit):
                actual = op(name)(case, arrange(first), arrange(second), bias)
            assert_within_rounding(actual, exact, magnitude, f"{dtype}, {arrange.__name__}, {limit} bytes")


def check_threads(case: Case, name: str, dtype: torch.dtype, isa: str, threads: Callable[[int], None]) -> None:
    """Results are the same bit for bit for any number of threads."""
    for arrange in ARRANGEMENTS:
        set_isa(isa)
        first, second, bias = operands(name, case, dtype, "cpu")
        results = []
        for count in (1, 2, 3):
            threads(count)
            results.append(op(name)(case, arrange(first), arrange(second), bias))
        for count, result in zip((2, 3), results[1:], strict=True):
            assert_same_bits(result, results[0], f"{dtype}, {isa}, {arrange.__name__}, {count} threads")


def check_batch(case: Case, name: str, dtype: torch.dtype, isa: str) -> None:
    """An image depends neither on the number of images nor on its position among them, bit for bit."""
    for arrange in ARRANGEMENTS:
        set_isa(isa)
        images, weight, bias = operands(name, case, dtype, "cpu")
        weight = arrange(weight)
        alone = [op(name)(case, arrange(image), weight, bias) for image in images.split(1)]
        for order in ([1, 0], [2, 0, 1], [6, 3, 5, 0, 1, 4, 2]):
            together = op(name)(case, arrange(images[order]), weight, bias)
            for position, index in enumerate(order):
                what = f"{dtype}, {isa}, {arrange.__name__}, image {index} at {position} of {len(order)}"
                assert_same_bits(together[position : position + 1], alone[index], what)


def class_of(values: Tensor) -> Tensor:
    """0 of finite numbers, 1 and -1 of infinities, 2 of NaN."""
    return torch.where(values.isnan(), 2, values.isposinf().int() - values.isneginf().int())


# The axis of the result that tells which elements an operand's element has to do with even where it meets padding only.
ROW_AXIS = {("conv", 1): 1, ("conv_transpose", 1): 1, ("conv_weight_grad", 0): 0}


def check_infinities_and_nan(case: Case, name: str, operand: int, dtype: torch.dtype, isas: Iterable[str]) -> None:
    """They reach the sums that they are terms of, and no others. A product with padding is NaN or left out."""
    for value in (float("inf"), -float("inf"), float("nan")):
        tensors = operands(name, case, dtype, "cpu")
        ones = [torch.ones_like(tensor) for tensor in tensors[:2]]
        ones[operand].zero_()
        index = ones[operand].numel() // 3
        tensors[operand].view(-1)[index] = value
        ones[operand].view(-1)[index] = 1
        reached = COMPUTATIONS[name][1](case, wide(ones[0]), wide(ones[1]), None) > 0
        exact, _ = expected_of(name, case, tensors)
        expected = torch.where(reached, class_of(exact.to(dtype)), 0)
        free = torch.zeros_like(reached)
        if (axis := ROW_AXIS.get((name, operand))) is not None:
            free |= (
                reached.movedim(axis, 0).flatten(1).any(1).view([-1 if i == axis else 1 for i in range(reached.dim())])
            )
        for isa, arrange in itertools.product(isas, ARRANGEMENTS):
            set_isa(isa)
            found = class_of(op(name)(case, arrange(tensors[0]), arrange(tensors[1]), tensors[2]))
            right = (found == expected) | (free & ~reached & (found == 2))
            assert right.all(), f"{dtype}, {isa}, {arrange.__name__}, {value}: {right.logical_not().nonzero()[0]}"
