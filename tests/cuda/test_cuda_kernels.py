"""The CUDA kernels im2col, col2im and store, run by the emulator, against the reference in plain PyTorch."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import CASES, MEMORY_FORMATS, RESULT_FORMATS, Case, channels_last, random_tensor
from compare import assert_same_bits
from emulator.build import load
from emulator.kernels import (
    ALL_CASES,
    EVERYTHING,
    GROUPED_CASES,
    INDEX_LIMITS,
    MOST,
    SCHEDULES,
    TILED,
    TILED_CASES,
    by_name,
    col2im,
    expected_columns,
    expected_store,
    geometry_of,
    guarded,
    im2col,
    layout_of,
    set_schedule,
    store,
    untouched,
)
from unfoldconv import reference

pytestmark = pytest.mark.usefixtures("plain_emulator")


def in_orders(tiled: list[Case], others: list[Case]) -> Any:
    """Every order of threads where they wait for each other, in tiles. Else the first and the last of those that write
    one element tell whether there is more than one."""
    pairs = [*itertools.product(tiled, SCHEDULES), *itertools.product(others, SCHEDULES[:2])]
    return pytest.mark.parametrize(("case", "order"), pairs, ids=[f"{case.name}-{order[0]}" for case, order in pairs])


# --- im2col -----------------------------------------------------------------------------------------------------------


@in_orders(TILED_CASES, [case for case in ALL_CASES if case not in TILED_CASES])
def test_im2col(case: Case, order: tuple[str, int]) -> None:
    set_schedule(load(), *order)
    image = random_tensor(case.input_shape, torch.float32)
    for (name, to_format), (index, limit) in itertools.product(MEMORY_FORMATS.items(), INDEX_LIMITS.items()):
        formatted = to_format(image)
        load().set_limits(index=limit, blocks=MOST)
        before = load().launch_count()
        columns = im2col(formatted, case, guard_end=index == "int", groups=case.groups)
        assert_same_bits(columns, expected_columns(formatted, case), f"{name}, {index}")
        assert load().launch_count() - before == (case.batch > 0), "one launch for the whole batch"


# Elements of 1, 2, 4, 8 and 16 bytes, and the conversions.
WIDTHS = [(dtype, dtype) for dtype in (torch.uint8, torch.int16, torch.float32, torch.int64, torch.complex128)]
WIDENINGS = [(torch.float16, torch.float32), (torch.bfloat16, torch.float32)]


@pytest.mark.parametrize(("dtype", "to"), [*WIDTHS, *WIDENINGS], ids=str)
@by_name([EVERYTHING, TILED, *GROUPED_CASES])
def test_im2col_of_every_width(case: Case, dtype: torch.dtype, to: torch.dtype) -> None:
    image = random_tensor(case.input_shape, dtype)
    for to_format, guard_end in itertools.product((torch.Tensor.contiguous, channels_last), (False, True)):
        columns = im2col(to_format(image), case, to=to, guard_end=guard_end)
        assert_same_bits(columns, expected_columns(image.to(to), case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
@by_name([EVERYTHING, TILED, *(case for case in CASES if case.name == "padding-3d"), *GROUPED_CASES])
def test_im2col_of_a_range_of_positions(case: Case, dtype: torch.dtype) -> None:
    image = random_tensor(case.input_shape, dtype)
    expected = expected_columns(image, case)
    positions = expected.shape[-1]
    ranges = [
        (0, 1),
        (0, positions),
        (positions - 1, 1),
        (3, 4),
        (1, positions - 1),
        (positions // 2, 0),
        (2, 5),
        (4, 4),
        (positions // 2 // 8 * 8, 8 if positions >= 16 else 0),
    ]
    for (first, count), to_format in itertools.product(ranges, (torch.Tensor.contiguous, channels_last)):
        assert first + count <= positions
        columns = im2col(to_format(image), case, first, count)
        assert_same_bits(columns, expected[:, :, first : first + count].contiguous(), f"[{first}, {first + count})")


def test_im2col_writes_groups_only_where_they_are_aligned() -> None:
    """Ranges of an odd length, and columns that begin in the middle of a word or of 16 bytes."""
    case = GROUPED_CASES[1]
    image = guarded(random_tensor(case.input_shape, torch.bfloat16), load(), True)
    expected = expected_columns(image, case)
    for count, offset in [(16, 0), (16, 1), (16, 2), (10, 0), (10, 1), (7, 0), (7, 1)]:
        columns = guarded(untouched((2 + expected[:, :, :count].numel(),), torch.bfloat16), load(), True)
        load().im2col(
            image.data_ptr(),
            load().DType.bfloat16,
            layout_of(image, 1),
            geometry_of(case),
            0,
            count,
            columns[offset:].data_ptr(),
            load().DType.bfloat16,
        )
        written = columns[offset : offset + expected[:, :, :count].numel()].reshape(expected[:, :, :count].shape)
        assert_same_bits(written.clone(), expected[:, :, :count].contiguous(), f"{count} from {offset}")


def test_im2col_chooses_its_kernel_and_index() -> None:
    few, many = EVERYTHING, TILED

    def kernel_of(case: Case, to_format: Any) -> str:
        im2col(to_format(random_tensor(case.input_shape, torch.float32)), case)
        return load().last_launch()[0]

    assert "GatherItems<2, int>" in kernel_of(many, torch.Tensor.contiguous)
    assert "TileItems<int>" in kernel_of(many, channels_last)
    assert "GatherItems<2, int>" in kernel_of(few, channels_last), "too few channels for tiles"
    load().set_limits(index=1000, blocks=MOST)
    assert "GatherItems<3, long>" in kernel_of(many, channels_last)


# --- col2im -----------------------------------------------------------------------------------------------------------

# Of the columns: rows first, positions first, every image the same, every second element of larger ones.
COLUMN_FORMATS = {
    "contiguous": torch.Tensor.contiguous,
    "transposed": lambda columns: columns.mT.contiguous().mT,
    "expanded": lambda columns: columns[:1].expand_as(columns),
    "sliced": MEMORY_FORMATS["sliced"],
}


@in_orders([], ALL_CASES)
def test_col2im(case: Case, order: tuple[str, int]) -> None:
    """Bit for bit: the reference adds the taps in the same order."""
    set_schedule(load(), *order)
    columns = random_tensor(case.columns_shape, torch.float32)
    for (name, to_format), (index, limit) in itertools.product(COLUMN_FORMATS.items(), INDEX_LIMITS.items()):
        formatted = to_format(columns)
        load().set_limits(index=limit, blocks=MOST)
        before = load().launch_count()
        image = col2im(formatted, case, guard_end=index == "int")
        expected = reference.fold_naive(formatted, case.input_size, case.kernel_size, **case.window)
        assert_same_bits(image, expected, f"{name}, {index}")
        assert load().launch_count() - before == (case.batch > 0), "one launch for the whole batch"
        rank = case.rank if index == "int" else 3  # kernels of 64-bit indices serve every rank
        assert image.numel() == 0 or f"Parameters<{rank}, {index}>" in load().last_launch()[0]


SUMS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]


@pytest.mark.parametrize("dtype", [*SUMS, *FLOATS], ids=str)
@by_name([EVERYTHING, *GROUPED_CASES])
def test_col2im_of_every_dtype(case: Case, dtype: torch.dtype) -> None:
    columns = random_tensor(case.columns_shape, dtype)
    expected = reference.fold_naive(columns, case.input_size, case.kernel_size, **case.window)
    for guard_end in (False, True):
        assert_same_bits(col2im(columns, case, guard_end=guard_end), expected)


@pytest.mark.parametrize(("stride", "dilation"), list(itertools.product((1, 2, 3, 4, 6, 9), (1, 2, 3, 4, 5, 8))))
def test_col2im_of_any_stride_and_dilation(stride: int, dilation: int) -> None:
    """Which taps read an element depends on the divisors that stride and dilation share."""
    case = dataclasses.replace(
        next(case for case in CASES if case.name == "plain-1d"),
        input_size=(31,),
        kernel_size=(5,),
        stride=(stride,),
        dilation=(dilation,),
        padding=((6, 3),),
    )
    columns = random_tensor(case.columns_shape, torch.float32)
    assert_same_bits(
        col2im(columns, case), reference.fold_naive(columns, case.input_size, case.kernel_size, **case.window)
    )


# --- store ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", SCHEDULES, ids=lambda order: order[0])
@pytest.mark.parametrize(
    "shape", [(2, 6, 11), (3, 40, 9), (2, 6, 5, 4), (2, 40, 7, 6), (2, 6, 3, 4, 5), (1, 36, 5, 2, 7)]
)
def test_store(shape: tuple[int, ...], order: tuple[str, int]) -> None:
    set_schedule(load(), *order)
    planes, positions = math.prod(shape[:2]), math.prod(shape[2:])
    bias = random_tensor((shape[1],), torch.float32)
    ranges = [(0, positions), (0, 1), (3, positions - 3), (positions - 4, 3), (2, 0)]
    for (first, count), (name, to_format), index in itertools.product(ranges, RESULT_FORMATS.items(), INDEX_LIMITS):
        load().set_limits(index=INDEX_LIMITS[index], blocks=MOST)
        values = random_tensor((planes, count), torch.float32)
        output = to_format(random_tensor(shape, torch.float32))
        for shift, accumulate in [(None, False), (bias, False), (None, True)]:
            before = load().launch_count()
            stored = store(values, output, shift, first, groups=2, accumulate=accumulate, guard_end=index == "int")
            expected = expected_store(values, output, shift, first, accumulate)
            assert_same_bits(stored.contiguous(), expected, f"[{first}, {first + count}), {name}, {index}")
            assert load().launch_count() - before == (count > 0)


@pytest.mark.parametrize(
    ("dtype", "to"),
    [*((dtype, dtype) for dtype in [*SUMS, *FLOATS]), *((to, dtype) for dtype, to in WIDENINGS)],
    ids=str,
)
def test_store_rounds_once(dtype: torch.dtype, to: torch.dtype) -> None:
    shape = (2, 16, 33)
    values = random_tensor((32, 33), dtype)
    output, bias = random_tensor(shape, to), random_tensor((16,), to)
    for to_format, accumulate in itertools.product((torch.Tensor.contiguous, channels_last), (False, True)):
        if accumulate and dtype != to:
            continue
        shift = None if accumulate else bias
        stored = store(values, to_format(output), shift, accumulate=accumulate)
        assert_same_bits(stored.contiguous(), expected_store(values, output, shift, 0, accumulate))


def test_store_chooses_its_kernel() -> None:
    def kernel_of(output: Tensor) -> str:
        store(random_tensor((20, 12), torch.float32), output)
        return load().last_launch()[0]

    output = torch.zeros(1, 20, 3, 4)
    assert "Output<1, int, float>" in kernel_of(output)
    assert "Tiling" not in kernel_of(output)
    assert "Output<1, int, float>, unfoldconv::cuda::Tiling<int>" in kernel_of(channels_last(output))
    assert "Output<3, int, float>" in kernel_of(torch.zeros(1, 20, 3, 5)[..., :4])
    load().set_limits(index=100, blocks=MOST)
    assert "Output<3, long, float>" in kernel_of(channels_last(output))
