"""The engine for a few channels per group on a CPU: every instruction set, dtype, format, group size and window."""

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

ops = torch.ops.unfoldconv

_case = partial(grouped_case, groups=5, per_group=4)


# Windows of every kind, with groups that leave the last vector partly empty.
CASES = [
    _case("one_tap", (23,), 1),
    _case("one_tap", (5, 6), 1, stride=(2, 3), padding=((1, 0), (0, 2)), per_group=8),
    _case("two_taps", (40,), 2, padding=((1, 1),), per_group=2, groups=11),
    _case("causal", (37,), 3, padding=((4, 0),), dilation=2),
    _case("long", (61,), 31, padding=((15, 15),), per_group=8, groups=3),
    _case("strided", (61,), 3, stride=2, padding=((2, 1),), per_group=2),
    _case("strided_by_3", (50,), 7, stride=3, padding=((0, 5),), dilation=2),
    _case("gaps", (33,), 2, stride=5, padding=((1, 1),), per_group=8),
    _case("cropped", (41,), 3, padding=((1, -7),), per_group=2),
    _case("three", (9, 17), 3, padding=(1, 1)),
    _case("three", (7, 19), 3, padding=(1, 1), per_group=2, groups=13),
    _case("three_of_8", (8, 20), 3, padding=(1, 1), per_group=8, groups=3),
    _case("three_strided", (11, 31), 3, stride=2, padding=(1, 1)),
    _case("three_strided_of_8", (11, 16), 3, stride=2, padding=(1, 1), per_group=8),
    _case("five", (13, 12), 5, stride=(1, 2), padding=((2, 1), (0, 3)), dilation=(2, 1), per_group=2),
    _case("seven", (7, 7), 7, padding=(3, 3)),
    _case("beyond_the_image", (7, 7), 13, padding=(6, 6), per_group=2),
    _case("far_beyond_the_image", (5, 4), 13, padding=((8, 9), (11, 7)), per_group=2),
    _case("negative", (12, 11), (3, 5), padding=((2, -1), (3, -4)), stride=(1, 2), per_group=8, groups=1),
    _case("only_padding", (3, 2), 3, stride=2, padding=((9, 9), (6, 6)), dilation=(4, 5)),
    _case("wide_stride", (16, 19), (2, 3), stride=(4, 5), padding=((1, 0), (2, 2))),
    _case("stride_and_dilation", (15, 17), 4, stride=(4, 6), dilation=(2, 4), padding=((3, 3), (5, 2))),
    _case("one_column", (9, 1), 3, padding=(1, 1)),
    _case("one_position", (5, 3), (5, 3), per_group=8),
    _case("one_group", (9, 20), 3, padding=(1, 1), groups=1),
    _case("three", (4, 5, 6), 3, padding=(1, 1)),
    _case("mixed", (5, 7, 9), (2, 3, 5), stride=(2, 1, 3), padding=((1, 0), (0, 2), (3, 1)), dilation=(1, 2, 1)),
    _case("strided", (6, 7, 8), 3, stride=2, padding=(1, 1), per_group=2, groups=6),
    _case("empty_batch", (9, 8), 3, padding=(1, 1), batch=0),
    # Rows of every length up to more than two of the widest pieces.
    *(_case(f"columns_{size}", (2, size), 3, padding=(1, 1), batch=1, groups=4) for size in range(1, 31)),
    # Group sizes that have kernels, for one dtype or all, and those that leave the work to the other engines.
    *(_case(f"group_of_{size}", (6, 9), 3, padding=(1, 1), per_group=size) for size in (1, 2, 3, 4, 5, 6, 7, 8, 16)),
    _case("more_outputs", (6, 9), 3, padding=(1, 1), out_per_group=8),
    _case("fewer_outputs", (6, 9), 3, padding=(1, 1), out_per_group=2),
]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_passes_against_torch(case: Case, dtype: torch.dtype, memory_format: str, isa: str) -> None:
    """Forward with bias and both gradients."""
    check(case, dtype, memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("per_group", [2, 4, 8])
def test_engine(per_group: int, memory_format: str, isa: str) -> None:
    """The cases above reach the engine, wherever a vector holds whole groups; generic vectors do without it."""
    case = _case("three", (6, 9), 3, padding=(1, 1), per_group=per_group, groups=8)
    for dtype in DTYPES:
        x, w, y, b = operands(case, dtype, memory_format)
        ops.begin_report(False)
        results(case, x, w, y, b)
        report = ops.end_report()
        lanes = {"generic": 16, "avx2": 32, "avx512": 64}[isa] // max(4, dtype.itemsize)
        taken = lanes % per_group == 0 and isa != "generic"
        assert report.count("name=grouped") == (3 if taken else 0), (dtype, report)


SMALL_CASES = (
    _case("rows", (40, 41), 5, padding=((2, 1), (3, 2)), batch=1),
    _case("strided", (41, 40), 3, stride=(2, 3), padding=(1, 1), batch=1, per_group=8),
    _case("line", (3000,), 4, padding=((3, 0),), batch=1, per_group=2),
    _case("volume", (6, 9, 13), 3, padding=(1, 1), batch=1),
)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("limit", [2**14, 2**16])
def test_small_boxes(limit: int, memory_format: str, isa: str) -> None:
    check_small_workspace(SMALL_CASES, limit, memory_format)


BITS_CASES = [
    _case("three", (30, 28), 3, padding=(1, 1), batch=5, groups=10),
    _case("strided", (31, 28), 3, stride=2, padding=(1, 1), batch=5, groups=20, per_group=2),
    _case("large", (14, 15), 5, padding=(2, 2), batch=5, per_group=8),
    _case("line", (900,), 4, padding=((3, 0),), batch=5, groups=10),
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


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("per_group", [2, 4, 8])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_groups_do_not_mix(value: float, per_group: int, memory_format: str, isa: str) -> None:
    """An element that is not finite reaches only the positions whose window holds it, in its own group."""
    case = _case("three", (6, 20), 3, padding=(1, 1), per_group=per_group)
    x, w, y, b = (tensor.abs() + 1 for tensor in operands(case, torch.float32, memory_format))
    x[0, per_group, 2, 3] = y[0, per_group, 1, 2] = value
    actual, expected = results(case, x, w, y, b), expected_results(case, x, w, y, b)
    for name in ("conv", "input_grad", "weight_grad"):
        assert torch.equal(actual[name].isfinite(), expected[name].isfinite()), name
    x, w, y, b = (tensor.abs() + 1 for tensor in operands(case, torch.float32, memory_format))
    w[per_group, 0, 1, 1] = value
    actual, expected = results(case, x, w, y, b), expected_results(case, x, w, y, b)
    for name in ("conv", "input_grad"):
        assert torch.equal(actual[name].isfinite(), expected[name].isfinite()), name
