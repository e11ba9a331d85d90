"""Convolutions of integers and of complex numbers on CUDA, by the emulator. Torch has no products of integers there."""

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import CASES, CASES_2D, COMPLEX, INTEGERS, MEMORY_FORMATS, Case, channels_last, make_case, random_tensor
from compare import assert_same_bits, assert_within_rounding
from computations import COMPUTATIONS, expected_integers, expected_of, operands
from emulator.build import load
from emulator.convolutions import compute, engines, multiply_integers, workspace_limit
from emulator.faults import PlantedFault, assert_found
from emulator.kernels import MOST, SCHEDULES, set_schedule

ARRANGEMENTS: tuple[Callable[[Tensor], Tensor], ...] = (Tensor.contiguous, channels_last)
NAME, FILE = "integer_faults", "integer_products.cu"

# Tiles are of 64 rows by 64 positions, or terms, and chunks of 16 of what is summed.
_PADDED = {"kernel_size": (3, 3, 3), "padding": ((1, 1),) * 3, "bias": True}
TILED = [
    make_case(name, 2, **changes)
    for name, changes in {
        # More than one tile each way, and chunks that are not full.
        "tiles": {"batch": 2, "in_channels": 8, "out_channels": 67, "input_size": (9, 8), **_PADDED},
        "groups": {"batch": 2, "in_channels": 8, "out_channels": 12, "groups": 2, "input_size": (9, 8), **_PADDED},
        # Read where it lies, whole chunks and tiles.
        "pointwise": {"batch": 2, "in_channels": 32, "out_channels": 64, "kernel_size": (1, 1), "input_size": (8, 8)},
        "depthwise": {"in_channels": 6, "out_channels": 6, "groups": 6, "input_size": (7, 11), **_PADDED},
        # Phases that share their columns.
        "patches": {"in_channels": 5, "out_channels": 3, "kernel_size": (2, 2), "stride": (2, 2), "input_size": (8, 6)},
    }.items()
]


pytestmark = pytest.mark.usefixtures("plain_emulator")


def by_name(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def has_result(name: str, case: Case) -> bool:
    return name != "conv_weight_grad" or case.batch > 0  # the caller fills the gradient of an empty batch


def check(name: str, case: Case, dtype: torch.dtype, **options: Any) -> None:
    """Both memory formats of the operands and the result; numbers of any bits, so nearly every sum wraps around."""
    tensors = operands(name, case, dtype, "cpu")
    expected = expected_integers(name, case, tensors)
    for arrange in ARRANGEMENTS:
        first, second = arrange(tensors[0]), arrange(tensors[1])
        to_format = Tensor.contiguous if name == "conv_weight_grad" else arrange
        actual = compute(name, case, first, second, tensors[2], to_format=to_format, **options)
        assert_same_bits(actual.contiguous(), expected, f"{dtype}, {arrange.__name__}")


# --- values -----------------------------------------------------------------------------------------------------------


# Types differ in what is loaded, multiplied and stored: two of them stand for the rest in every situation.
ENDS = [torch.uint8, torch.int64]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("name", COMPUTATIONS)
def test_every_situation(name: str, dtype: torch.dtype) -> None:
    for case in CASES if dtype in ENDS else CASES_2D:
        if has_result(name, case):
            check(name, case, dtype)


@by_name(TILED)
@pytest.mark.parametrize("name", COMPUTATIONS)
def test_tiles(name: str, case: Case) -> None:
    """Of every width; memory that may not be touched lies before the tensors, or behind them."""
    for dtype, guard_end in [*((dtype, True) for dtype in INTEGERS), *((dtype, False) for dtype in ENDS)]:
        check(name, case, dtype, guard_end=guard_end)


def test_sums_beyond_every_type_wrap_around() -> None:
    """Of the largest number by itself: 400 terms, so that 8 times 8 bits would not fit 16, nor 32 times 32 bits 64."""
    case = make_case("large", 1, batch=1, in_channels=80, out_channels=1, input_size=(5,), kernel_size=(5,))
    for dtype in INTEGERS:
        largest, terms = torch.iinfo(dtype).max, 400
        wrapped = (largest * largest * terms) % 2 ** (8 * dtype.itemsize)
        expected = wrapped - 2 ** (8 * dtype.itemsize) * (wrapped > largest)
        input, weight = (torch.full(shape, largest, dtype=dtype) for shape in (case.input_shape, case.weight_shape))
        assert compute("conv", case, input, weight, None).item() == expected, dtype


@pytest.mark.parametrize("dtype", ENDS, ids=str)
@pytest.mark.parametrize("name", COMPUTATIONS)
def test_the_order_of_threads_and_blocks_does_not_matter(name: str, dtype: torch.dtype) -> None:
    for order, blocks in zip(SCHEDULES, (2, MOST, 2), strict=True):
        set_schedule(load(), *order)
        load().set_limits(index=MOST, blocks=blocks)
        check(name, TILED[0], dtype)


@pytest.mark.parametrize("name", COMPUTATIONS)
def test_a_small_workspace(name: str) -> None:
    """Chunks of a few columns each, and one that holds not even a single column."""
    small = make_case("small", 2, in_channels=2, out_channels=4, groups=2, input_size=(4, 3), **_PADDED)
    for case, limit in ((TILED[0], 4096), (TILED[1], 4096), (small, 1)):
        with workspace_limit(limit):
            check(name, case, torch.int16)


def test_64_bit_indices() -> None:
    """Of the kernels around the product, which has no others."""
    load().set_limits(index=-1, blocks=MOST)
    for name in COMPUTATIONS:
        check(name, TILED[0], torch.int32)


# --- products by themselves -------------------------------------------------------------------------------------------

STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "transposed": lambda matrices: matrices.mT.contiguous().mT,
    "expanded": lambda matrices: matrices[:1].expand_as(matrices),
    "sliced": MEMORY_FORMATS["sliced"],
}


def check_products(
    dtype: torch.dtype, sizes: tuple[int, int, int, int], strides: Iterable[str] = STRIDES, emulated: Any = None
) -> None:
    batch, rows, depth, cols = sizes
    left, right = random_tensor((batch, rows, depth), dtype), random_tensor((batch, depth, cols), dtype)
    for first, second, guard_end in itertools.product(strides, strides, (False, True)):
        operands = STRIDES[first](left), STRIDES[second](right)
        actual = multiply_integers(*operands, guard_end=guard_end, emulated=emulated)
        expected = torch.bmm(*(tensor.long() for tensor in operands)).to(dtype)
        assert_same_bits(actual, expected, f"{dtype}, {sizes}, {first}, {second}")


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_products(dtype: torch.dtype) -> None:
    for sizes in (
        (2, 67, 35, 130),
        (1, 64, 16, 64),
        (3, 1, 17, 5),
        (2, 3, 1, 2),
        (2, 3, 0, 2),
        (1, 0, 3, 2),
        (0, 2, 2, 2),
    ):
        check_products(dtype, sizes)


# --- the choice -------------------------------------------------------------------------------------------------------


def products_of_torch(name: str, case: Case, dtype: torch.dtype) -> set[str]:
    first, second, bias = operands(name, case, dtype, "cpu")
    assert set(engines(name, case, first, second, bias)) == {"columns"}
    with torch.profiler.profile() as profile:
        compute(name, case, first, second, bias)
    return {event.key for event in profile.key_averages()} & {"aten::mm", "aten::bmm"}


@pytest.mark.parametrize("name", COMPUTATIONS)
def test_products_of_integers_are_ours(name: str) -> None:
    """Torch's, which are there on the emulator and not on CUDA, are called for other numbers."""
    case = TILED[1]
    for dtype in INTEGERS:
        assert not products_of_torch(name, case, dtype)
    assert products_of_torch(name, case, torch.complex64)


# --- complex numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
@pytest.mark.parametrize("name", COMPUTATIONS)
def test_complex_numbers(name: str, dtype: torch.dtype) -> None:
    """Gathered and stored by the kernels, multiplied by torch."""
    for case in [*CASES, *TILED]:
        if not has_result(name, case):
            continue
        tensors = operands(name, case, dtype, "cpu")
        exact, magnitude = expected_of(name, case, tensors)
        for arrange in ARRANGEMENTS:
            to_format = Tensor.contiguous if name == "conv_weight_grad" else arrange
            with workspace_limit(4096 if case.name == "all_at_once-2d" else 32 << 20):
                actual = compute(name, case, arrange(tensors[0]), arrange(tensors[1]), tensors[2], to_format=to_format)
            assert_within_rounding(actual, exact, magnitude, f"{case.name}, {dtype}, {arrange.__name__}")


# --- planted faults ---------------------------------------------------------------------------------------------------

VALUES = "the values differ"
GUARD = "must not be touched"
BARRIER = "__syncthreads();"


@dataclass(frozen=True)
class Fault(PlantedFault):
    message: str = VALUES


def planted(name: str, text: str, replacement: str, message: str = VALUES) -> Fault:
    return Fault(name, FILE, text, replacement, message)


FAULTS = [
    planted("no_first_barrier", f"{BARRIER}  // the last", f"if (!{{fault}}) {BARRIER}  // the last"),
    planted("no_second_barrier", f"{BARRIER}  // this one", f"if (!{{fault}}) {BARRIER}  // this one"),
    planted("whole_sides", "at < count_ &&", "(at < count_ || {fault}) &&", GUARD),
    planted("whole_chunks", "of_depth < depth ?", "(of_depth < depth || {fault}) ?", f"{VALUES}|{GUARD}"),
    planted("all_rows", "row < rows &&", "(row < rows || {fault}) &&", GUARD),
    planted("all_cols", "&& col < cols)", "&& (col < cols || {fault}))", f"{VALUES}|{GUARD}"),
    planted("one_chunk", "next_ += chunk_stride_;", "next_ += {fault} ? 0 : chunk_stride_;"),
    planted("first_batch", "operand.data + batch *", "operand.data + !{fault} * batch *"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(fault: Fault) -> None:
    emulated = load({FILE: [fault.edit for fault in FAULTS]}, NAME)
    emulated.set_limits(index=MOST, blocks=2)  # more than one tile for each block
    check = functools.partial(check_products, torch.int32, (2, 67, 35, 70), ["contiguous"], emulated)
    assert_found(emulated, fault, fault.message, check)
