"""The implicit matrix products of CUDA, run by the emulator, against convolutions of torch in float64."""

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import CASES, Case, channels_last, make_case, random_tensor
from compare import assert_same_bits, assert_within_rounding, wide
from computations import expected_by_torch, operands
from emulator.build import load
from emulator.convolutions import compute, engines, forced, steps, workspace_limit
from emulator.gemm import ARRANGEMENTS, ENGINE, PADDED, TILED, VARIED, check_formats, rounded_to_tf32
from emulator.kernels import MOST, WARP_SCHEDULES, by_name, set_schedule

pytestmark = pytest.mark.usefixtures("plain_engine")
both_passes = pytest.mark.parametrize("name", ["conv", "conv_transpose"])


# --- values -----------------------------------------------------------------------------------------------------------


@by_name([*CASES, *TILED])
@both_passes
def test_float32(name: str, case: Case) -> None:
    check_formats(name, case, torch.float32)


@by_name([case for case in [*CASES, *TILED] if case.rank < 3])
@both_passes
def test_float16(name: str, case: Case) -> None:
    check_formats(name, case, torch.float16, guard_end=False)


@by_name([*VARIED, *TILED])
@both_passes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(name: str, case: Case, dtype: torch.dtype) -> None:
    check_formats(name, case, dtype)


@by_name([*VARIED, *TILED])
@both_passes
def test_tf32(name: str, case: Case) -> None:
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    tensors = operands(name, case, torch.float32, "cpu")
    exact, magnitude = expected_by_torch(name, case, [*map(rounded_to_tf32, tensors[:2]), tensors[2]])
    for arrange in ARRANGEMENTS:
        actual = compute(name, case, arrange(tensors[0]), arrange(tensors[1]), tensors[2], to_format=arrange)
        assert_within_rounding(actual, exact, magnitude, arrange.__name__)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_turing(dtype: torch.dtype) -> None:
    """sm_75 has no asynchronous copies and a smaller matrix instruction."""
    include = '#include "cuda/implicit_gemm/implicit_gemm.cuh"'
    edit = [(include, f"#define EMULATED_ARCHITECTURE 750\n{include}")]
    turing = load({f"implicit_gemm_{name}.cu": edit for name in ("half", "float")}, "turing")
    for case, order in zip([*VARIED, *TILED[:2]], itertools.cycle(WARP_SCHEDULES), strict=False):
        set_schedule(turing, *order)
        check_formats("conv", case, dtype, emulated=turing)
        if case.batch:
            check_formats("conv_weight_grad", case, dtype, emulated=turing)


def test_turing_has_no_tf32() -> None:
    """Where it is allowed, products are in float32 all the same."""
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    test_turing(torch.float32)


# --- what must not matter ---------------------------------------------------------------------------------------------


@by_name(TILED[:3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_order_of_threads_and_blocks_does_not_matter(case: Case, dtype: torch.dtype) -> None:
    first, second, bias = operands("conv", case, dtype, "cpu")
    for arrange in ARRANGEMENTS:
        results = []
        for order, blocks in zip(WARP_SCHEDULES, (MOST, 2, 2, MOST), strict=True):
            set_schedule(load(), *order)
            load().set_limits(index=MOST, blocks=blocks)
            results.append(compute("conv", case, arrange(first), second, bias, to_format=arrange))
        for result in results[1:]:
            assert_same_bits(result, results[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_neither_the_size_of_the_tile_nor_the_batch_changes_a_bit(dtype: torch.dtype) -> None:
    case = TILED[0]
    first, second, bias = operands("conv", case, dtype, "cpu")
    for arrange in ARRANGEMENTS:
        narrow = compute("conv", case, arrange(first), second, bias, to_format=arrange)
        load().set_limits(index=MOST, blocks=MOST, busy=1)
        wide = compute("conv", case, arrange(first), second, bias, to_format=arrange)
        assert load().last_launch()[2] == 256
        load().set_limits(index=MOST, blocks=MOST)
        assert_same_bits(wide, narrow)
        alone = dataclasses.replace(case, batch=1)
        last = compute("conv", alone, arrange(first[2:]), second, bias, to_format=arrange)
        assert_same_bits(last, narrow[2:])


@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_a_small_workspace_cuts_the_packed_weight(name: str) -> None:
    for case, limit in ((TILED[1], 2**13), (TILED[1], 2**11 * 3), (TILED[2], 1)):
        first, second, bias = operands(name, case, torch.float16, "cpu")
        before = load().launch_count()
        whole = compute(name, case, first, second, bias)
        launches = load().launch_count() - before
        for arrange in ARRANGEMENTS:
            with workspace_limit(limit):
                part = compute(name, case, first, second, bias, to_format=arrange)
            assert_same_bits(part.contiguous(), whole)
        assert load().launch_count() - before >= 5 * launches, "each part is packed and multiplied by itself"


# --- sums in segments -------------------------------------------------------------------------------------------------

# Sums of 12 chunks of float16, and in the phases of the stride of 12, 6 and 3; with segments of 2 chunks all are cut.
DEEP = make_case("deep", 2, batch=3, in_channels=40, out_channels=72, input_size=(6, 5), **PADDED)
DEEP_STRIDED = make_case("deep_strided", 2, batch=3, in_channels=72, out_channels=96, stride=(2, 2), **PADDED)
SEGMENT = 2
deep_passes = pytest.mark.parametrize(("name", "case"), [("conv", DEEP), ("conv_transpose", DEEP_STRIDED)])


def set_limits(**limits: int) -> None:
    load().set_limits(**{"index": MOST, "blocks": MOST, "segment": SEGMENT, **limits})


@contextmanager
def launching(launches: int, what: str = "") -> Iterator[None]:
    before = load().launch_count()
    yield
    assert load().launch_count() - before == launches, what


def split() -> AbstractContextManager[None]:
    """The weight is packed, the segments are summed by a block each, and added."""
    return launching(3, "split")


def whole() -> AbstractContextManager[None]:
    """The weight is packed, and one block sums the segments."""
    return launching(2, "whole")


@deep_passes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_segments(name: str, case: Case, dtype: torch.dtype) -> None:
    set_limits()
    with launching(5 if name == "conv" else 6, "split, and all but one weight packed"):
        check_formats(name, case, dtype)


@deep_passes
def test_sums_in_segments_by_one_block(name: str, case: Case) -> None:
    # As few blocks as are still enough, of wide tiles and of narrow ones.
    for busy, threads in ((1, 256), (2 if name == "conv" else 5, 128)):
        set_limits(busy=busy, blocks=2)
        with launching(3 if name == "conv" else 4, "whole, and all but one weight packed"):
            check_formats(name, case, torch.float16)
        assert load().last_launch()[2] == threads


@deep_passes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_who_sums_the_segments_changes_no_bit_and_nor_does_the_batch(name: str, case: Case, dtype: torch.dtype) -> None:
    first, second, bias = operands(name, case, dtype, "cpu")
    for arrange in ARRANGEMENTS:

        def result(case: Case, first: Tensor, arrange: Any = arrange) -> Tensor:
            return compute(name, case, arrange(first), second, bias, to_format=arrange)

        set_limits()
        with split():
            expected = result(case, first)
        for image in (0, case.batch - 1):
            with split():
                alone = result(dataclasses.replace(case, batch=1), first[image : image + 1])
            assert_same_bits(alone, expected[image : image + 1], f"image {image} alone")
        for limits in ({"busy": 1}, {"busy": 2 if name == "conv" else 5}, {"busy": 1, "blocks": 2}):
            set_limits(**limits)
            with whole():
                assert_same_bits(result(case, first), expected, f"one block, {limits}")
        for order, blocks in zip(WARP_SCHEDULES[1:], (2, MOST, 2), strict=True):
            set_schedule(load(), *order)
            set_limits(blocks=blocks)
            with split():
                assert_same_bits(result(case, first), expected, f"{order}")
        set_schedule(load(), "forward")
        set_limits(segment=MOST)
        with whole():
            assert not torch.equal(result(case, first), expected), "sums that are not cut are others"


@pytest.mark.parametrize(("batch", "splits"), [(1, 4), (8, 4), (256, 1)])
def test_deep_sums_of_few_positions_are_split(batch: int, splits: int) -> None:
    shape = {"kernel_size": (3, 3), "padding": ((1, 1),) * 2}
    case = make_case("late", 2, batch=batch, in_channels=512, out_channels=512, input_size=(7, 7), **shape)
    for name in ("conv", "conv_transpose"):
        tensors = (torch.empty(shape, dtype=torch.bfloat16) for shape in (case.input_shape, case.weight_shape))
        (step,) = steps(name, case, *tensors, None)
        assert int(step["splits"]) == splits
        assert int(step["shared_bytes"]) > 0
        assert int(step["thread_bytes"]) + int(step["shared_bytes"]) <= 32 << 20
    early = dataclasses.replace(case, batch=1, in_channels=64, out_channels=64, input_size=(56, 56))
    (step,) = steps("conv", early, *(torch.empty(s) for s in (early.input_shape, early.weight_shape)), None)
    assert (step["splits"], step["shared_bytes"]) == ("1", "0"), "the sums are short"


def test_without_room_for_partial_sums_none_is_cut() -> None:
    set_limits()
    first, second, bias = operands("conv", DEEP, torch.float32, "cpu")
    with workspace_limit(2**24 - 1), whole():
        compute("conv", DEEP, first, second, bias)
    with workspace_limit(2**24), split():
        compute("conv", DEEP, first, second, bias)


# --- the choice -------------------------------------------------------------------------------------------------------


def test_a_convolution_of_channels_last_tensors_is_one_launch() -> None:
    case = TILED[1]
    first, second, bias = operands("conv", case, torch.float16, "cpu")
    for weight, launches in ((second, 2), (channels_last(second), 1)):
        before = load().launch_count()
        compute("conv", case, channels_last(first), weight, bias, to_format=channels_last)
        assert load().launch_count() - before == launches


# Strided windows, and how many launches their input gradient takes beside the one that packs the weight.
PHASED = {
    make_case(name, rank, in_channels=9, out_channels=8, bias=True, **changes): launches
    for name, rank, launches, changes in [
        ("overlapping", 2, 1, {"kernel_size": (3, 3), "stride": (2, 2), "padding": ((1, 1),) * 2}),
        ("apart", 2, 1, {"kernel_size": (1, 1), "stride": (2, 2), "input_size": (7, 8)}),
        ("gaps_in_one_axis", 2, 1, {"kernel_size": (2, 3), "stride": (4, 2), "padding": ((1, 0), (0, 1))}),
        ("patches", 2, 1, {"kernel_size": (5, 4), "stride": (5, 4), "input_size": (10, 8)}),
        ("volume", 3, 1, {"kernel_size": (3, 3, 3), "stride": (2, 2, 2), "padding": ((1, 1),) * 3}),
        # 5 x 5 phases, because the dilation tells every residue from the others: more than a launch takes.
        ("many_phases", 2, 3, {"kernel_size": (5, 5), "stride": (5, 5), "dilation": (2, 3), "input_size": (13, 15)}),
    ]
}


@by_name(list(PHASED))
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_phases_of_an_input_gradient_are_one_launch(case: Case, dtype: torch.dtype) -> None:
    tensors = operands("conv_transpose", case, dtype, "cpu")
    exact, magnitude = expected_by_torch("conv_transpose", case, tensors)
    for arrange, bias in itertools.product(ARRANGEMENTS, (tensors[2], None)):
        before = load().launch_count()
        actual = compute("conv_transpose", case, *map(arrange, tensors[:2]), bias, to_format=arrange)
        assert load().launch_count() - before == 2 * PHASED[case], "the weight is packed, and multiplied"
        without = 0 if bias is not None else wide(tensors[2]).view(-1, *[1] * case.rank)
        assert_within_rounding(actual, exact - without, magnitude, arrange.__name__)


def test_the_engine_is_chosen_where_it_can_be() -> None:
    case = TILED[0]

    def engine_of(dtype: torch.dtype) -> list[str]:
        first, second, bias = (random_tensor(shape, dtype) for shape in (case.input_shape, case.weight_shape, (72,)))
        return engines("conv", case, first, second, bias)

    with forced("automatic"):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            assert engine_of(dtype) == [ENGINE]
        for dtype in (torch.complex64, torch.int32):
            assert engine_of(dtype) == ["columns"]
        load().set_limits(index=3000, blocks=MOST)
        assert engine_of(torch.float32) == ["columns"], "offsets inside an image must fit 32 bits"
    with forced("columns"):
        assert engine_of(torch.float32) == ["columns"]


def test_nothing_to_do_is_no_launch() -> None:
    case = dataclasses.replace(TILED[0], batch=0)
    first, second, bias = operands("conv", case, torch.float16, "cpu")
    before = load().launch_count()
    assert compute("conv", case, first, second, bias).shape == case.output_shape
    assert load().launch_count() == before
