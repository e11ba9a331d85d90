"""The kernels im2col, col2im and store on the emulator as functions of tensors, and what they must give.

All tensors of a kernel lie in guarded memory, so one element too far is an error in every test.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import CASES, Case
from unfoldconv import reference

from .build import load

SCHEDULES = [("forward", 0), ("reverse", 0), ("shuffled", 1)]
WARP_SCHEDULES = [*SCHEDULES, ("by_warp", 0)]  # for kernels whose warps wait for themselves
MOST = 2**31 - 1  # the limits of launch.cuh
INDEX_LIMITS = {"int": MOST, "long": -1}  # an index type, and the limit that forces it

_NAMED = {case.name: case for case in CASES}
# Enough channels for tiles, which are of 32 channels by 32 positions: less than one tile, and more.
TILED_CASES = [
    dataclasses.replace(_NAMED[name], name=f"{name}-{channels}_channels", in_channels=channels, input_size=size)
    for name, channels, size in [
        ("padding-1d", 9, (70,)),
        ("padding-2d", 40, (9, 7)),
        ("asymmetric-2d", 40, (9, 7)),
        ("dilation-2d", 40, (9, 7)),
        ("padding-3d", 33, (3, 4, 2)),
    ]
]
CROPPED_CASES = [
    dataclasses.replace(
        _NAMED[f"stride-{rank}d"],
        name=f"cropped-{rank}d",
        input_size=(11, 9, 12)[:rank],
        padding=((-2, 1), (1, -1), (-1, -2))[:rank],
    )
    for rank in (1, 2, 3)
]
# Rows of positions, and of the image, that threads take in groups of 16 or 4 bytes: whether a tap reads what its
# neighbour read one position before depends on stride and dilation.
GROUPED_CASES = [
    dataclasses.replace(
        _NAMED[f"padding-{len(size)}d"],
        name=f"groups-{name}",
        in_channels=3,
        input_size=size,
        kernel_size=(2, 3, 3)[-len(size) :],
        stride=(*(2, 1)[: len(size) - 1], stride),
        padding=(*((1, 0), (2, 1))[: len(size) - 1], padding),
        dilation=(*(1, 2)[: len(size) - 1], dilation),
    )
    for name, size, stride, dilation, padding in [
        ("1d", (32,), 1, 1, (1, 1)),
        ("2d", (5, 16), 1, 1, (2, 0)),
        ("3d", (3, 5, 16), 1, 1, (0, 2)),
        ("strided", (6, 32), 2, 1, (1, 1)),
        ("dilated", (6, 16), 1, 3, (3, 3)),
        ("strided_dilated", (5, 31), 2, 2, (2, 2)),
        ("of_four", (5, 4), 1, 1, (1, 1)),
        ("of_two", (5, 6), 1, 1, (1, 1)),
        # What would fill groups, but not those of a row: 4 rows of 6 positions, and images of rows of 5.
        ("across_rows", (9, 6), 1, 1, (1, 1)),
        ("odd_rows", (6, 5), 1, 1, (1, 1)),
    ]
]
ALL_CASES = [*CASES, *TILED_CASES, *CROPPED_CASES, *GROUPED_CASES]
EVERYTHING = _NAMED["all_at_once-2d"]
TILED = TILED_CASES[1]


def by_name(cases: Sequence[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def reset() -> None:
    """What a test changes of the emulator is as before."""
    set_schedule(load(), "forward")
    load().set_limits(index=MOST, blocks=MOST)


def set_schedule(emulated: Any, order: str, seed: int = 0) -> None:
    emulated.set_schedule(getattr(emulated.Order, order), seed)


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
