"""The CUDA kernels im2col, col2im and store, run by the emulator, against the reference in plain PyTorch.

All tensors of a kernel lie in guarded memory, so one element too far is an error in every test.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import CASES, MEMORY_FORMATS, Case, channels_last, random_tensor
from compare import assert_same_bits
from emulator.build import load
from unfoldconv import reference

SCHEDULES = [("forward", 0), ("reverse", 0), ("shuffled", 1)]
NO_LIMITS = {"index": 2**31 - 1, "blocks": 2**31 - 1}
INDEX_LIMITS = {"int": 2**31 - 1, "long": -1}  # the index type, and the limit that forces it

# Enough channels for tiles, which are of 32: less than one, more than one, and at least one of positions.
TILED_CASES = [
    dataclasses.replace(case, name=f"{case.name}-{channels}_channels", in_channels=channels, input_size=size)
    for case, channels, size in [
        (CASES[2], 9, (70,)),
        *((case, 40, (9, 7)) for case in CASES if case.name in ("padding-2d", "asymmetric-2d", "dilation-2d")),
        *((case, 33, (3, 4, 2)) for case in CASES if case.name == "padding-3d"),
    ]
]
CROPPED_CASES = [
    dataclasses.replace(case, name=f"cropped-{case.rank}d", padding=((-2, 1), (1, -1), (-1, -2))[: case.rank])
    for case in [
        dataclasses.replace(case, input_size=(11, 9, 12)[: case.rank]) for case in CASES if "stride-" in case.name
    ]
    if case.name.startswith("stride")
]
ALL_CASES = [*CASES, *TILED_CASES, *CROPPED_CASES]
EVERYTHING = next(case for case in CASES if case.name == "all_at_once-2d")
TILED = next(case for case in TILED_CASES if case.name.startswith("padding-2d"))


@pytest.fixture(autouse=True)
def plain_emulator() -> Iterator[None]:
    yield
    set_schedule(load(), "forward")
    load().set_limits(**NO_LIMITS)


def set_schedule(emulated: Any, order: str, seed: int = 0) -> None:
    emulated.set_schedule(getattr(emulated.Order, order), seed)


def by_name(cases: Sequence[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


# --- calling the kernels ----------------------------------------------------------------------------------------------


def guarded(tensor: Tensor, emulated: Any, guard_end: bool) -> Tensor:
    """The same values and strides in memory that ends, or begins, beside a guard."""
    extent = (
        0 if tensor.numel() == 0 else 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    )
    memory = emulated.Guarded(max(extent, 1) * tensor.element_size(), guard_end)
    flat = torch.frombuffer(memory, dtype=torch.uint8).view(tensor.dtype)[:extent]
    flat.copy_(tensor.as_strided((extent,), (1,)))
    return flat.as_strided(tensor.shape, tensor.stride())


def dtype_code(emulated: Any, dtype: torch.dtype) -> Any:
    return getattr(emulated.DType, str(dtype).removeprefix("torch."))


def layout_of(image: Tensor, groups: int) -> dict[str, list[int]]:
    batch, channels = image.shape[:2]
    of_image, of_channel, *of_axis = image.stride()
    inner = channels // groups
    return {
        "count": [batch, groups, inner],
        "stride": [of_image, of_channel * inner, of_channel],
        "axis_stride": of_axis,
    }


def geometry_of(case: Case) -> dict[str, list[int]]:
    return {
        "image": list(case.input_size),
        "positions": list(case.output_size),
        "kernel": list(case.kernel_size),
        "stride": list(case.stride),
        "dilation": list(case.dilation),
        "padding_low": [low for low, _ in case.padding],
    }


def untouched(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What no kernel computes: every byte is 0x5a."""
    return torch.full((math.prod(shape) * dtype.itemsize,), 0x5A, dtype=torch.uint8).view(dtype).reshape(shape)


def im2col(
    image: Tensor,
    case: Case,
    first: int = 0,
    count: int | None = None,
    *,
    to: torch.dtype | None = None,
    groups: int = 1,
    guard_end: bool = True,
    emulated: Any = None,
) -> Tensor:
    emulated = emulated or load()
    count = math.prod(case.output_size) - first if count is None else count
    to = to or image.dtype
    image = guarded(image, emulated, guard_end)
    columns = guarded(untouched((math.prod(image.shape[:2]), case.taps, count), to), emulated, guard_end)
    emulated.im2col(
        image.data_ptr(),
        dtype_code(emulated, image.dtype),
        layout_of(image, groups),
        geometry_of(case),
        first,
        count,
        columns.data_ptr(),
        dtype_code(emulated, to),
    )
    return columns.clone()


def expected_columns(image: Tensor, case: Case) -> Tensor:
    columns = reference.unfold_naive(image, case.kernel_size, **case.window)
    return columns.reshape(math.prod(image.shape[:2]), case.taps, columns.shape[-1])


def col2im(columns: Tensor, case: Case, *, guard_end: bool = True, emulated: Any = None) -> Tensor:
    emulated = emulated or load()
    columns = guarded(columns, emulated, guard_end)
    batch, channels = columns.shape[0], columns.shape[1] // case.taps
    image = guarded(untouched((batch, channels, *case.input_size), columns.dtype), emulated, guard_end)
    emulated.col2im(
        columns.data_ptr(),
        dtype_code(emulated, columns.dtype),
        batch,
        channels,
        list(columns.stride()),
        geometry_of(case),
        image.data_ptr(),
    )
    return image.clone()


def store(
    values: Tensor,
    output: Tensor,
    bias: Tensor | None = None,
    first: int = 0,
    *,
    groups: int = 1,
    accumulate: bool = False,
    guard_end: bool = True,
    emulated: Any = None,
) -> Tensor:
    """Stores values (planes, count) into a copy of output (batch, channels, *sizes)."""
    emulated = emulated or load()
    values, output = guarded(values, emulated, guard_end), guarded(output, emulated, guard_end)
    bias = None if bias is None else guarded(bias, emulated, guard_end)
    emulated.store(
        values.data_ptr(),
        dtype_code(emulated, values.dtype),
        0 if bias is None else bias.data_ptr(),
        first,
        values.shape[1],
        list(output.shape[2:]),
        layout_of(output, groups),
        output.data_ptr(),
        dtype_code(emulated, output.dtype),
        accumulate,
    )
    return output.clone()


def expected_store(values: Tensor, output: Tensor, bias: Tensor | None, first: int, accumulate: bool) -> Tensor:
    wide = torch.float32 if output.dtype in (torch.float16, torch.bfloat16) else output.dtype
    batch, channels = output.shape[:2]
    result = output.flatten(2).clone()
    covered = result[:, :, first : first + values.shape[1]]
    total = values.to(wide).reshape(batch, channels, values.shape[1])
    if bias is not None:
        total = total + bias.to(wide).reshape(-1, 1)
    if accumulate:
        total = total + covered.to(wide)
    covered.copy_(total.to(output.dtype))
    return result.reshape(output.shape)


# --- im2col -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", SCHEDULES, ids=lambda order: order[0])
@by_name(ALL_CASES)
def test_im2col(case: Case, order: tuple[str, int]) -> None:
    set_schedule(load(), *order)
    image = random_tensor(case.input_shape, torch.float32)
    for (name, to_format), (index, limit) in itertools.product(MEMORY_FORMATS.items(), INDEX_LIMITS.items()):
        formatted = to_format(image)
        load().set_limits(index=limit, blocks=2**31 - 1)
        before = load().launch_count()
        columns = im2col(formatted, case, guard_end=index == "int", groups=case.groups)
        assert_same_bits(columns, expected_columns(formatted, case), f"{name}, {index}")
        assert load().launch_count() - before == (case.batch > 0), "one launch for the whole batch"


# Elements of 1, 2, 4, 8 and 16 bytes, and the conversions.
WIDTHS = [(dtype, dtype) for dtype in (torch.uint8, torch.int16, torch.float32, torch.int64, torch.complex128)]
WIDENINGS = [(torch.float16, torch.float32), (torch.bfloat16, torch.float32)]


@pytest.mark.parametrize(("dtype", "to"), [*WIDTHS, *WIDENINGS], ids=str)
@by_name([EVERYTHING, TILED])
def test_im2col_of_every_width(case: Case, dtype: torch.dtype, to: torch.dtype) -> None:
    image = random_tensor(case.input_shape, dtype)
    for to_format, guard_end in itertools.product((torch.Tensor.contiguous, channels_last), (False, True)):
        columns = im2col(to_format(image), case, to=to, guard_end=guard_end)
        assert_same_bits(columns, expected_columns(image.to(to), case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
@by_name([EVERYTHING, TILED, *(case for case in CASES if case.name == "padding-3d")])
def test_im2col_of_a_range_of_positions(case: Case, dtype: torch.dtype) -> None:
    image = random_tensor(case.input_shape, dtype)
    expected = expected_columns(image, case)
    positions = expected.shape[-1]
    ranges = [(0, 1), (0, positions), (positions - 1, 1), (3, 4), (1, positions - 1), (positions // 2, 0), (2, 5)]
    for (first, count), to_format in itertools.product(ranges, (torch.Tensor.contiguous, channels_last)):
        assert first + count <= positions
        columns = im2col(to_format(image), case, first, count)
        assert_same_bits(columns, expected[:, :, first : first + count].contiguous(), f"[{first}, {first + count})")


def test_im2col_writes_pairs_only_where_they_are_aligned() -> None:
    """Rows of an odd length, and columns that begin in the middle of a word."""
    case = dataclasses.replace(EVERYTHING, padding=((0, 0), (0, 0)), dilation=(1, 1), stride=(1, 1), input_size=(5, 6))
    image = guarded(random_tensor(case.input_shape, torch.bfloat16), load(), True)
    expected = expected_columns(image, case)
    assert expected.shape[-1] % 2 == 1
    for count, offset in [(8, 0), (8, 1), (7, 0), (7, 1)]:
        columns = guarded(untouched((1 + expected[:, :, :count].numel(),), torch.bfloat16), load(), True)
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
    load().set_limits(index=1000, blocks=2**31 - 1)
    assert "GatherItems<2, long>" in kernel_of(many, channels_last)


# --- col2im -----------------------------------------------------------------------------------------------------------

# Of the columns: rows first, positions first, every image the same, every second element of larger ones.
COLUMN_FORMATS = {
    "contiguous": torch.Tensor.contiguous,
    "transposed": lambda columns: columns.mT.contiguous().mT,
    "expanded": lambda columns: columns[:1].expand_as(columns),
    "sliced": MEMORY_FORMATS["sliced"],
}


@pytest.mark.parametrize("order", SCHEDULES, ids=lambda order: order[0])
@by_name(ALL_CASES)
def test_col2im(case: Case, order: tuple[str, int]) -> None:
    """Bit for bit: the reference adds the taps in the same order."""
    set_schedule(load(), *order)
    columns = random_tensor(case.columns_shape, torch.float32)
    for (name, to_format), (index, limit) in itertools.product(COLUMN_FORMATS.items(), INDEX_LIMITS.items()):
        formatted = to_format(columns)
        load().set_limits(index=limit, blocks=2**31 - 1)
        before = load().launch_count()
        image = col2im(formatted, case, guard_end=index == "int")
        expected = reference.fold_naive(formatted, case.input_size, case.kernel_size, **case.window)
        assert_same_bits(image, expected, f"{name}, {index}")
        assert load().launch_count() - before == (case.batch > 0), "one launch for the whole batch"
        assert image.numel() == 0 or f"Parameters<{case.rank}, {index}>" in load().last_launch()[0]


SUMS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]


@pytest.mark.parametrize("dtype", [*SUMS, *FLOATS], ids=str)
def test_col2im_of_every_dtype(dtype: torch.dtype) -> None:
    columns = random_tensor(EVERYTHING.columns_shape, dtype)
    expected = reference.fold_naive(columns, EVERYTHING.input_size, EVERYTHING.kernel_size, **EVERYTHING.window)
    assert_same_bits(col2im(columns, EVERYTHING), expected)


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
    formats = {name: value for name, value in MEMORY_FORMATS.items() if name != "expanded"}
    for (first, count), (name, to_format), index in itertools.product(ranges, formats.items(), INDEX_LIMITS):
        load().set_limits(index=INDEX_LIMITS[index], blocks=2**31 - 1)
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
    load().set_limits(index=100, blocks=2**31 - 1)
    assert "Output<1, long, float>" in kernel_of(channels_last(output))


# --- sizes ------------------------------------------------------------------------------------------------------------


@by_name([EVERYTHING, TILED])
@pytest.mark.parametrize("most_blocks", [1, 2])
def test_a_grid_smaller_than_the_work(case: Case, most_blocks: int) -> None:
    load().set_limits(index=2**31 - 1, blocks=most_blocks)
    for order, to_format in itertools.product(SCHEDULES, (torch.Tensor.contiguous, channels_last)):
        set_schedule(load(), *order)
        image = to_format(random_tensor(case.input_shape, torch.float32))
        columns = expected_columns(image, case)
        assert_same_bits(im2col(image, case), columns)
        assert load().last_launch()[1] == most_blocks
        folded = reference.fold_naive(
            columns.reshape(case.columns_shape), case.input_size, case.kernel_size, **case.window
        )
        assert_same_bits(col2im(columns.reshape(case.columns_shape), case), folded)
        values = random_tensor((math.prod(image.shape[:2]), math.prod(image.shape[2:])), torch.float32)
        assert_same_bits(store(values, image).contiguous(), values.reshape(image.shape))


@pytest.mark.parametrize("shape", [(0, 4, 6, 5), (2, 0, 6, 5)])
def test_nothing_to_do_is_no_launch(shape: tuple[int, ...]) -> None:
    case = dataclasses.replace(EVERYTHING, batch=shape[0], in_channels=shape[1], input_size=shape[2:])
    image = torch.zeros(shape)
    before = load().launch_count()
    assert im2col(image, case).numel() == 0
    assert col2im(torch.zeros(case.columns_shape), case).numel() == 0
    assert store(torch.zeros(0, 30), image).numel() == 0
    assert load().launch_count() == before


def test_offsets_beyond_32_bits_take_64_bit_indices() -> None:
    """Two planes more than 2^31 elements apart, in memory of which only what is touched exists."""
    distance = 2**31 + 64
    memory = load().Guarded(distance + 5, True)
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    case = dataclasses.replace(CASES[0], batch=1, in_channels=2, input_size=(5,), kernel_size=(2,))
    image = flat.as_strided((1, 2, 5), (2 * distance, distance, 1))
    image.copy_(torch.arange(10).reshape(1, 2, 5))
    columns = torch.zeros(2, 2, 4, dtype=torch.uint8)
    load().im2col(
        *(image.data_ptr(), load().DType.uint8, layout_of(image, 1), geometry_of(case)),
        *(0, 4, columns.data_ptr(), load().DType.uint8),
    )
    assert "long" in load().last_launch()[0]
    assert_same_bits(columns, expected_columns(image, case))

    values = torch.arange(10, 20, dtype=torch.uint8).reshape(2, 5)
    load().store(
        *(values.data_ptr(), load().DType.uint8, 0, 0, 5, [5]),
        *(layout_of(image, 1), image.data_ptr(), load().DType.uint8, False),
    )
    assert "long" in load().last_launch()[0]
    assert image.flatten().tolist() == list(range(10, 20))

    rows = flat.as_strided((1, 4, 4), (0, 2**31 // 3 + 10, 1))  # the fourth one lies beyond
    rows.copy_(torch.arange(16).reshape(1, 4, 4))
    folded = torch.zeros(1, 2, 5, dtype=torch.uint8)
    load().col2im(
        *(rows.data_ptr(), load().DType.uint8, 1, 2, list(rows.stride())),
        *(geometry_of(case), folded.data_ptr()),
    )
    assert "long" in load().last_launch()[0]
    assert_same_bits(folded, reference.fold_naive(rows, (5,), (2,)))


@pytest.mark.parametrize("far", [2**31, 2**45])
def test_a_huge_padding_stride_or_dilation_is_just_a_number(far: int) -> None:
    """Position 0 reads far below the image and at 0; position 1 reads at 1 and far above it."""
    geometry = {
        "image": [3],
        "positions": [2],
        "kernel": [2],
        "stride": [far + 1],
        "dilation": [far],
        "padding_low": [far],
    }
    layout = {"count": [1, 1, 1], "stride": [3, 3, 3], "axis_stride": [1]}
    dtype = load().DType.int32
    image = guarded(torch.tensor([5, 6, 7], dtype=torch.int32), load(), True)
    columns = torch.full((4,), -1, dtype=torch.int32)
    load().im2col(image.data_ptr(), dtype, layout, geometry, 0, 2, columns.data_ptr(), dtype)
    assert columns.tolist() == [0, 6, 5, 0]

    columns = guarded(torch.tensor([1, 2, 3, 4], dtype=torch.int32), load(), True)
    load().col2im(columns.data_ptr(), dtype, 1, 1, [4, 2, 1], geometry, image.data_ptr())
    assert image.tolist() == [3, 2, 0]


# --- planted faults ---------------------------------------------------------------------------------------------------

# One rank is enough, and compiles faster.
ONE_RANK = [("UNFOLDCONV_INSTANTIATE(1)\n", ""), ("UNFOLDCONV_INSTANTIATE(3)\n", "")]


def check_im2col(emulated: Any, to_format: Any) -> None:
    image = to_format(random_tensor(TILED.input_shape, torch.int16))
    assert_same_bits(im2col(image, TILED, emulated=emulated), expected_columns(image, TILED))
    assert_same_bits(
        im2col(image, TILED, 0, 3, emulated=emulated), expected_columns(image, TILED)[..., :3].contiguous()
    )


def check_col2im(emulated: Any, to_format: Any) -> None:
    columns = to_format(random_tensor(TILED.columns_shape, torch.float32))
    expected = reference.fold_naive(columns, TILED.input_size, TILED.kernel_size, **TILED.window)
    assert_same_bits(col2im(columns, TILED, emulated=emulated), expected)


def check_store(emulated: Any, to_format: Any) -> None:
    output = to_format(random_tensor((2, 40, 7, 6), torch.float32))
    values = random_tensor((80, 42), torch.float32)
    assert_same_bits(store(values, output, emulated=emulated).contiguous(), values.reshape(output.shape))


def always(text: str) -> tuple[str, str]:
    return text, f"({text} || true)"


GUARD = "must not be touched"
VALUES = "the values differ"
# The file, the edit, what to run with images of which format, and what is then found.
FAULTS = {
    "im2col_without_barrier": ("im2col.cu", ("      __syncthreads();\n", ""), check_im2col, channels_last, VALUES),
    "im2col_of_one_buffer": ("im2col.cu", ("++tap, current ^= 1", "++tap"), check_im2col, channels_last, VALUES),
    "im2col_without_bounds": (
        "im2col.cu",
        always("static_cast<Unsigned>(index) < static_cast<Unsigned>(image[axis])"),
        check_im2col,
        torch.Tensor.contiguous,
        GUARD,
    ),
    "im2col_of_odd_pairs": (
        "im2col.cu",
        always("range.count % 2 == 0"),
        check_im2col,
        torch.Tensor.contiguous,
        "a pointer must be aligned",
    ),
    "im2col_beyond_the_tile": (
        "im2col.cu",
        always("thread.lane < tile.positions"),
        check_im2col,
        channels_last,
        f"{GUARD}|{VALUES}",
    ),
    "col2im_without_bounds": (
        "col2im.cu",
        always("position < axis.positions"),
        check_col2im,
        torch.Tensor.contiguous,
        f"{GUARD}|{VALUES}",
    ),
    "store_without_first_barrier": (
        "store.cu",
        ("    __syncthreads();\n#pragma", "#pragma"),
        check_store,
        channels_last,
        VALUES,
    ),
    "store_without_last_barrier": (
        "store.cu",
        ("    __syncthreads();  // the next tile", "// the next tile"),
        check_store,
        channels_last,
        VALUES,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str) -> None:
    file, edit, check, to_format, message = FAULTS[name]
    planted = load({f"cuda/{file}": [edit, *ONE_RANK]}, name)
    found = []
    for order in SCHEDULES:
        for emulated in (load(), planted):
            set_schedule(emulated, *order)
            emulated.set_limits(index=2**31 - 1, blocks=2)  # more than one tile for each block
        check(load(), to_format)
        try:
            check(planted, to_format)
        except (AssertionError, RuntimeError) as error:
            found.append(str(error))
    assert found, "no order of threads shows it"
    assert all(re.search(message, text) for text in found), found
