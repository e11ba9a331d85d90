"""The CUDA kernels where sizes are extreme: grids smaller than the work, no work, and numbers beyond 32 bits."""

import dataclasses
import itertools
import math

import pytest
import torch

from cases import CASES, Case, channels_last, random_tensor
from compare import assert_same_bits
from emulator.build import load
from emulator.kernels import (
    EVERYTHING,
    MOST,
    SCHEDULES,
    TILED,
    by_name,
    col2im,
    expected_columns,
    geometry_of,
    guarded,
    im2col,
    layout_of,
    set_schedule,
    store,
)
from unfoldconv import reference

pytestmark = pytest.mark.usefixtures("plain_emulator")


@by_name([EVERYTHING, TILED])
@pytest.mark.parametrize("most_blocks", [1, 2])
def test_a_grid_smaller_than_the_work(case: Case, most_blocks: int) -> None:
    load().set_limits(index=MOST, blocks=most_blocks)
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
