"""The engine for one channel per group on a CPU: every instruction set, dtype, memory format and kind of window."""

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch

from cases import Case
from compare import assert_same_bits
from grouped_passes import (
    DTYPES,
    FORMATS,
    check,
    check_small_workspace,
    expected_results,
    grouped_case,
    operands,
    results,
)

_case = partial(grouped_case, groups=19)


# Sizes beside a vector's length, and windows of every kind. 19 channels are one vector and a part of it, or several.
CASES = [
    _case("one_tap", (23,), 1),
    _case("one_tap", (5, 6), 1, stride=(2, 3), padding=((1, 0), (0, 2))),
    _case("short", (40,), 4, padding=((3, 3),)),
    _case("causal", (37,), 3, padding=((4, 0),), dilation=2),
    _case("long", (61,), 31, padding=((15, 15),)),
    _case("strided", (61,), 5, stride=2, padding=((2, 1),)),
    _case("strided_by_3", (50,), 7, stride=3, padding=((0, 5),), dilation=2),
    _case("gaps", (33,), 2, stride=5, padding=((1, 1),)),
    _case("cropped", (41,), 3, padding=((1, -7),)),
    _case("three", (9, 17), 3, padding=(1, 1)),
    _case("three_strided", (11, 16), 3, stride=2, padding=(1, 1)),
    _case("five", (13, 12), 5, stride=(1, 2), padding=((2, 1), (0, 3)), dilation=(2, 1)),
    _case("seven", (7, 7), 7, padding=(3, 3)),
    _case("beyond_the_image", (7, 7), 13, padding=(6, 6), groups=33),
    _case("far_beyond_the_image", (5, 4), 13, padding=((8, 9), (11, 7))),
    _case("most_of_the_image", (14, 13), (11, 17), padding=((5, 5), (8, 8))),
    _case("very_large", (20, 33), 31, padding=(15, 15), batch=1, groups=5),
    _case("negative", (12, 11), (3, 5), padding=((2, -1), (3, -4)), stride=(1, 2)),
    _case("only_padding", (3, 2), 3, stride=2, padding=((9, 9), (6, 6)), dilation=(4, 5)),
    _case("wide_stride", (16, 19), (2, 3), stride=(4, 5), padding=((1, 0), (2, 2))),
    _case("stride_and_dilation", (15, 17), 4, stride=(4, 6), dilation=(2, 4), padding=((3, 3), (5, 2))),
    _case("one_column", (9, 1), (3, 3), padding=(1, 1)),
    _case("one_position", (5, 3), (5, 3)),
    _case("one_channel", (9, 20), 3, padding=(1, 1), groups=1),
    _case("three", (4, 5, 6), 3, padding=(1, 1)),
    _case("mixed", (5, 7, 9), (2, 3, 5), stride=(2, 1, 3), padding=((1, 0), (0, 2), (3, 1)), dilation=(1, 2, 1)),
    _case("strided", (6, 7, 8), 3, stride=2, padding=(1, 1), groups=6),
    # Small kernels, which read channels_last tensors where they lie, 7 or 8 positions at a time.
    _case("three_wide", (5, 40), 3, padding=(1, 1)),
    _case("three_wide_to_one_side", (4, 37), 3, padding=((0, 2), (2, 0)), dilation=(2, 1), groups=32),
    _case("three_strided_wide", (6, 50), 3, stride=2, padding=((1, 0), (0, 1)), groups=16),
    _case("three_strided_in_columns", (5, 31), (2, 3), stride=(1, 2), padding=(1, 1)),
    _case("five_wide", (7, 30), 5, padding=(2, 2), groups=33),
    _case("seven_wide", (9, 32), 7, padding=(3, 3), groups=20),
    _case("seven_in_groups", (5, 14), 7, padding=(3, 3), groups=100),
    _case("three_in_bands", (24, 200), 3, padding=(1, 1), batch=1),
    _case("narrower_than_the_kernel", (6, 2), 7, padding=(4, 4)),
    _case("cropped_columns", (6, 26), 5, padding=((1, 1), (2, -5))),
    _case("seven", (35,), 7, padding=((3, 3),)),
    _case("five_wide", (3, 4, 21), 5, padding=(2, 2), groups=8),
    _case("empty_batch", (9, 8), 3, padding=(1, 1), batch=0),
]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_passes_against_torch(case: Case, dtype: torch.dtype, memory_format: str, isa: str) -> None:
    """Forward with bias and both gradients."""
    check(case, dtype, memory_format)


SMALL_CASES = (
    _case("rows", (40, 41), 5, padding=((2, 1), (3, 2)), batch=1),
    _case("strided", (41, 40), 3, stride=(2, 3), padding=(1, 1), batch=1),
    _case("line", (3000,), 4, padding=((3, 0),), batch=1),
    _case("volume", (6, 9, 13), 3, padding=(1, 1), batch=1),
)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("limit", [2**14, 2**16])
def test_small_boxes(limit: int, memory_format: str, isa: str) -> None:
    check_small_workspace(SMALL_CASES, limit, memory_format)


BITS_CASES = [
    _case("three", (30, 28), 3, padding=(1, 1), batch=5, groups=40),
    _case("strided", (31, 28), 3, stride=2, padding=(1, 1), batch=5, groups=40),
    _case("large", (14, 14), 13, padding=(6, 6), batch=5, groups=40),
    _case("line", (900,), 4, padding=((3, 0),), batch=5, groups=40),
]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", BITS_CASES, ids=lambda case: case.name)
def test_bits(case: Case, dtype: torch.dtype, memory_format: str, isa: str, threads: Callable[[int], None]) -> None:
    """No result depends on threads; forward and input gradient do not depend on the rest of the batch."""
    x, w, y, b = operands(case, dtype, memory_format)
    expected = results(case, x, w, y, b)
    for count in (2, 3):
        threads(count)
        for name, result in results(case, x, w, y, b).items():
            assert_same_bits(result, expected[name], f"{name}, {count} threads")
    for first, last in itertools.combinations(range(case.batch + 1), 2):
        part = results(case, x[first:last], w, y[first:last], b)
        for name in ("conv", "input_grad"):
            assert_same_bits(part[name], expected[name][first:last], f"{name} of images {first} to {last}")


def test_padding_is_not_multiplied(isa: str) -> None:
    """An infinite element reaches only the positions whose window holds it, however large the kernel is."""
    for case in (_case("wide", (4, 40), 3, padding=(1, 1)), _case("large", (7, 7), 13, padding=(6, 6))):
        x, w, y, b = (tensor.abs() + 1 for tensor in operands(case, torch.float32, "contiguous"))
        x[0, 0, 2, 3] = y[0, 0, 1, 2] = torch.inf
        actual, expected = results(case, x, w, y, b), expected_results(case, x, w, y, b)
        for name in ("conv", "input_grad"):
            assert torch.equal(actual[name].isinf(), expected[name].isinf()), name


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_positions_that_do_not_exist(kernel: int, memory_format: str, isa: str) -> None:
    """What no window holds reaches no result, though a vector of positions ends beyond the last one."""
    case = _case("cropped", (9, 26), kernel, padding=((0, 0), (0, -9)))
    x, w, y, b = operands(case, torch.float32, memory_format)
    x[..., 17:] = torch.inf
    for name in ("conv", "weight_grad"):
        assert results(case, x, w, y, b)[name].isfinite().all(), name
