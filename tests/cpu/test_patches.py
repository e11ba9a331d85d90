"""unfold and fold on a CPU in the situations that have a way of their own there, with every instruction set.

Rows shorter and longer than vectors and copies, strides, channels that lie side by side, windows with more taps or
wider than a tile holds, images of several tiles, results of the size that gets large pages.
"""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import unfoldconv as uc
from cases import channels_last, random_tensor
from compare import assert_same_bits
from unfoldconv.reference import fold_naive, unfold_naive

# By width, where bytes are moved; and by the type that is added.
WIDTHS = [torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex128]
SUMS = [
    *(torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
]
# Around the lengths of vectors of every width, and of the pieces that short rows are copied in.
LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 14, 15, 16, 17, 28, 31, 33, 56, 63, 65, 129]


def small_whole_numbers(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Their sums are exact in every dtype, whatever the order."""
    if dtype == torch.bool:
        return torch.randint(0, 2, shape).bool()
    return torch.randint(0 if dtype == torch.uint8 else -2, 3, shape).to(dtype)


# The reference goes tap by tap: once for all instruction sets, which are the parameter that changes first.
@functools.lru_cache(maxsize=32)
def example(
    size: tuple[int, ...], kernel: tuple[int, ...], dtype: torch.dtype, channels: int, *window: tuple[str, int]
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """An image and its columns, and if the dtype has sums, columns of whole numbers and what they fold to."""
    image = random_tensor((2, channels, *size), dtype)
    columns = unfold_naive(image, kernel, **dict(window))
    if dtype not in SUMS:
        return image, columns, None
    whole = small_whole_numbers(tuple(columns.shape), dtype)
    return image, columns, (whole, fold_naive(whole, size, kernel, **dict(window)))


def check(size: tuple[int, ...], kernel: tuple[int, ...], dtype: torch.dtype, channels: int = 3, **window: int) -> None:
    """Unfold of contiguous and channels_last images, and fold of columns with any strides, against the reference."""
    what = f"{size} by {kernel}, {dtype}, {channels} channels, {window}"
    image, columns, sums = example(size, kernel, dtype, channels, *window.items())
    assert_same_bits(uc.unfold(image, kernel, **window), columns, what)
    assert_same_bits(uc.unfold(channels_last(image), kernel, **window), columns, f"channels_last {what}")
    if sums is not None:
        columns, folded = sums
        assert_same_bits(uc.fold(columns, size, kernel, **window), folded, what)
        transposed = columns.mT.contiguous().mT
        assert_same_bits(uc.fold(transposed, size, kernel, **window), folded, f"transposed {what}")


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_rows_of_every_length(isa: str, stride: int) -> None:
    for length in LENGTHS:
        for dtype in WIDTHS:
            check((3, length), (2, 3), dtype, padding=1, stride=stride)
            check((length,), (4,), dtype, padding=3, stride=stride, dilation=2)


@pytest.mark.parametrize("dtype", SUMS, ids=str)
def test_sums_of_every_dtype(isa: str, dtype: torch.dtype) -> None:
    for length in (5, 14, 16, 40):
        for stride in (1, 2, 4):
            check((4, length), (3, 3), dtype, padding=1, stride=stride)
    check((3, 4, 7), (2, 3, 3), dtype, padding=1)
    check((4, 5, 6), (3, 2, 3), dtype, padding=1, stride=2)


@pytest.mark.parametrize("channels", [1, 4, 5, 8, 15, 17, 33, 65])
def test_channels_that_lie_side_by_side(isa: str, channels: int) -> None:
    for dtype in WIDTHS:
        check((5, 18), (3, 3), dtype, channels, padding=1)
        check((5, 18), (2, 2), dtype, channels, stride=2)


def test_patches_that_do_not_overlap(isa: str) -> None:
    for dtype in WIDTHS:
        for patch in (2, 4, 7, 16, 20):
            check((2 * patch, 3 * patch + 1), (patch, patch), dtype, stride=patch)
            check((patch, 4 * patch), (patch, patch), dtype, stride=patch, padding=1)


def test_strides_and_dilations_that_share_a_factor_or_none(isa: str) -> None:
    for stride in (1, 2, 3, 4, 6, 9):
        for dilation in (1, 2, 3, 4, 6, 8):
            for kernel in (1, 2, 5):
                check((50,), (kernel,), torch.float32, padding=3, stride=stride, dilation=dilation)
                check((50,), (kernel,), torch.float16, padding=3, stride=stride, dilation=dilation)


def test_more_than_a_tile_holds(isa: str) -> None:
    for dtype in (torch.uint8, torch.float32, torch.complex128):
        check((90, 130), (3, 3), dtype, 1, padding=1)  # several tiles, each with its borders
        check((40, 90), (3, 3), dtype, 9, padding=1, stride=2)
        check((9, 20, 30), (3, 3, 3), dtype, 1, padding=1)
        check((30_000,), (3,), dtype, 1, padding=1, dilation=2)  # tiles along the only axis
        check((3, 9000), (2, 2), dtype, 1)
        check((60,), (10,), dtype, 1, padding=60_000, dilation=13_000)  # taps too far apart to share what they read
        check((40, 40), (31, 31), dtype, 1, padding=(2))  # more taps than are listed at a time
        check((41_000,), (40_000,), dtype, 1, stride=400)  # not even one position: no tile
        check((41_000,), (40_000,), dtype, 1, stride=1001, dilation=1)


def test_one_position_and_taps_change_places(isa: str) -> None:
    for dtype in WIDTHS:
        check((9, 30), (9, 30), dtype)
        check((5, 41), (3, 21), dtype, dilation=2)
        check((5, 7), (9, 11), dtype, padding=2)


@pytest.mark.parametrize("positions", [5, 7, 64])
def test_ranges_of_positions_begin_and_end_anywhere(isa: str, positions: int) -> None:
    """Small workspaces make the columns engine ask for ranges that begin and end within rows and slices."""
    input, weight = torch.randn(1, 2, 5, 6, 7, dtype=torch.complex64), torch.randn(3, 2, 2, 3, 3, dtype=torch.complex64)
    with uc.workspace_limit(positions * (2 * 18 + 3) * 8):
        output = uc.conv3d(input, weight, padding=1)
    torch.testing.assert_close(output, torch.nn.functional.conv3d(input, weight, padding=1))


def test_large_results(threads: Callable[[int], None]) -> None:
    """From 32 MiB on the result's pages are large; it may begin and end within one."""
    for size in (1031, 1040):
        image = random_tensor((1, 1, size, size), torch.float32)
        expected = torch.nn.functional.unfold(image, 3, padding=1)
        assert expected.numel() * 4 > 32 << 20
        for count in (1, 2):
            threads(count)
            assert_same_bits(uc.unfold(image, 3, padding=1), expected)
