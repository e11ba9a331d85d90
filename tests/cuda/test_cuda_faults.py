"""Faults planted in copies of the CUDA sources are found by the emulator."""

from typing import Any

import pytest
import torch

from cases import channels_last, random_tensor
from compare import assert_same_bits
from emulator.build import load
from emulator.faults import BARRIER, GUARD, NO_BARRIER, VALUES, Fault, check_found, ignored, plain
from emulator.kernels import (
    GROUPED_CASES,
    TILED,
    col2im,
    expected_columns,
    im2col,
    store,
)
from unfoldconv import reference

# One rank is enough, and compiles faster.
ONE_RANK = [("UNFOLDCONV_INSTANTIATE(1)\n", ""), ("UNFOLDCONV_INSTANTIATE(3)\n", "")]
PLANES_OF_GROUPS = [case for case in GROUPED_CASES if case.rank == 2]


def check_im2col(emulated: Any, to_format: Any) -> None:
    image = to_format(random_tensor(TILED.input_shape, torch.int16))
    assert_same_bits(im2col(image, TILED, emulated=emulated), expected_columns(image, TILED))
    assert_same_bits(
        im2col(image, TILED, 0, 3, emulated=emulated), expected_columns(image, TILED)[..., :3].contiguous()
    )


def check_im2col_of_groups(emulated: Any, to_format: Any) -> None:
    for case in PLANES_OF_GROUPS:
        image = to_format(random_tensor(case.input_shape, torch.int16))
        assert_same_bits(im2col(image, case, emulated=emulated), expected_columns(image, case))


def check_col2im_of_pairs(emulated: Any, to_format: Any) -> None:
    for case in PLANES_OF_GROUPS:
        columns = to_format(random_tensor(case.columns_shape, torch.int16))
        expected = reference.fold_naive(columns, case.input_size, case.kernel_size, **case.window)
        assert_same_bits(col2im(columns, case, emulated=emulated), expected)


def check_col2im(emulated: Any, to_format: Any) -> None:
    columns = to_format(random_tensor(TILED.columns_shape, torch.float32))
    expected = reference.fold_naive(columns, TILED.input_size, TILED.kernel_size, **TILED.window)
    assert_same_bits(col2im(columns, TILED, emulated=emulated), expected)


def check_store(emulated: Any, to_format: Any) -> None:
    output = to_format(random_tensor((2, 40, 7, 6), torch.float32))
    values = random_tensor((80, 42), torch.float32)
    assert_same_bits(store(values, output, emulated=emulated).contiguous(), values.reshape(output.shape))


FAULTS = [
    Fault("no_barrier", "im2col.cu", BARRIER, NO_BARRIER, check_im2col, channels_last, VALUES),
    Fault("one_buffer", "im2col.cu", "current ^= 1)", "current ^= !{fault})", check_im2col, channels_last, VALUES),
    Fault(
        "no_bounds",
        "im2col.cu",
        *ignored("static_cast<Unsigned>(index) < static_cast<Unsigned>(image[axis])"),
        check_im2col,
        plain,
        GUARD,
    ),
    Fault(
        "odd_groups",
        "im2col.cu",
        *ignored("range.count % width == 0"),
        check_im2col,
        plain,
        "a pointer must be aligned",
    ),
    Fault(
        "groups_across_rows",
        "im2col.cu",
        *ignored("geometry.positions[Rank - 1] % width == 0"),
        check_im2col_of_groups,
        plain,
        VALUES,
    ),
    Fault(
        "always_slides",
        "im2col.cu",
        "Width > 1 && items.slides",
        "Width > 1 && (items.slides || {fault})",
        check_im2col_of_groups,
        plain,
        VALUES,
    ),
    Fault(
        "pairs_across_rows",
        "col2im.cu",
        *ignored("geometry.image[Rank - 1] % 2 == 0"),
        check_col2im_of_pairs,
        plain,
        f"{GUARD}|{VALUES}",
    ),
    Fault(
        "whole_tile",
        "im2col.cu",
        *ignored("thread.lane < tile.positions"),
        check_im2col,
        channels_last,
        f"{GUARD}|{VALUES}",
    ),
    Fault(
        "all_positions", "col2im.cu", *ignored("position < axis.positions"), check_col2im, plain, f"{GUARD}|{VALUES}"
    ),
    Fault(
        "no_first_barrier",
        "store.cu",
        f"{BARRIER}\n#pragma",
        f"{NO_BARRIER}\n#pragma",
        check_store,
        channels_last,
        VALUES,
    ),
    Fault(
        "no_last_barrier",
        "store.cu",
        f"{BARRIER}  // the next",
        f"{NO_BARRIER}  // the next",
        check_store,
        channels_last,
        VALUES,
    ),
]


def load_with_faults() -> Any:
    edits = {file: list(ONE_RANK) for file in sorted({fault.file for fault in FAULTS})}
    for fault in FAULTS:
        edits[fault.file].append(fault.edit)
    return load(edits, "faults")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}-{fault.name}")
def test_a_planted_fault_is_found(fault: Fault) -> None:
    check_found(load_with_faults(), fault)
