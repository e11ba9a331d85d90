"""unfold, fold and unfold_transpose, and the ops behind them, against the reference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import unfoldconv as uc
from cases import (
    CASES,
    CASES_2D,
    COMPLEX,
    FLOATS,
    FOLD_DTYPES,
    MEMORY_FORMATS,
    UNFOLD_DTYPES,
    Case,
    random_tensor,
)
from compare import assert_same_bits, assert_within_rounding, wide
from unfoldconv.reference import fold_naive, unfold_naive, unfold_transpose_naive

UNFOLD = {1: uc.unfold1d, 2: uc.unfold2d, 3: uc.unfold3d}
FOLD = {1: uc.fold1d, 2: uc.fold2d, 3: uc.fold3d}
UNFOLD_TRANSPOSE = {1: uc.unfold_transpose1d, 2: uc.unfold_transpose2d, 3: uc.unfold_transpose3d}

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_rank = pytest.mark.parametrize("rank", [1, 2, 3])

# One dtype for each width in which bytes are moved.
DTYPE_OF_WIDTH = [torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex128]


def im2col(case: Case, input: Tensor) -> Tensor:
    return torch.ops.unfoldconv.im2col(input, list(case.kernel_size), *case.op_window)


def col2im(case: Case, columns: Tensor) -> Tensor:
    return torch.ops.unfoldconv.col2im(columns, list(case.input_size), list(case.kernel_size), *case.op_window)


def assert_fold(case: Case, actual: Tensor, columns: Tensor, what: str) -> None:
    """Exact where sums are; else within rounding of the sum in double precision."""
    if not (columns.is_floating_point() or columns.is_complex()):
        assert_same_bits(actual, fold_naive(columns, case.input_size, case.kernel_size, **case.window), what)
        return
    expected, magnitude = (
        fold_naive(values, case.input_size, case.kernel_size, **case.window)
        for values in (wide(columns), wide(columns).abs())
    )
    assert actual.dtype == columns.dtype
    assert actual.device == columns.device
    assert_within_rounding(actual, expected, magnitude, what)


# --- against the reference --------------------------------------------------------------------------------------------


@each_case
def test_unfold_of_every_dtype(case: Case, device: torch.device) -> None:
    for dtype in UNFOLD_DTYPES:
        input = random_tensor(case.input_shape, dtype, device)
        expected = unfold_naive(input, case.kernel_size, **case.window)
        for columns in (uc.unfold(input, case.kernel_size, **case.window), im2col(case, input)):
            assert_same_bits(columns, expected, str(dtype))
            assert columns.is_contiguous()


@each_case
def test_unfold_of_every_memory_format(case: Case, device: torch.device) -> None:
    for dtype in DTYPE_OF_WIDTH:
        for name, arrange in MEMORY_FORMATS.items():
            input = arrange(random_tensor(case.input_shape, dtype, device))
            columns = uc.unfold(input, case.kernel_size, **case.window)
            expected = unfold_naive(input, case.kernel_size, **case.window)
            assert_same_bits(columns, expected, f"{dtype}, {name}")
            assert columns.is_contiguous()


@each_case
def test_fold_of_every_dtype(case: Case, device: torch.device) -> None:
    for dtype in FOLD_DTYPES:
        columns = random_tensor(case.columns_shape, dtype, device)
        for image in (uc.fold(columns, case.input_size, case.kernel_size, **case.window), col2im(case, columns)):
            assert_fold(case, image, columns, str(dtype))
            assert image.is_contiguous()


@each_case
def test_fold_of_every_memory_format(case: Case, device: torch.device) -> None:
    for dtype in (torch.bool, torch.int16, torch.float16, torch.float32, torch.complex128):
        for name, arrange in MEMORY_FORMATS.items():
            columns = arrange(random_tensor(case.columns_shape, dtype, device))
            image = uc.fold(columns, case.input_size, case.kernel_size, **case.window)
            assert_fold(case, image, columns, f"{dtype}, {name}")
            assert image.is_contiguous()


@each_case
def test_unfold_transpose(case: Case, device: torch.device) -> None:
    arguments = {**case.window, "output_padding": case.output_padding}
    for dtype in FOLD_DTYPES:
        input = random_tensor(case.output_shape, dtype, device)
        columns = uc.unfold_transpose(input, case.kernel_size, **arguments)
        assert_same_bits(columns, unfold_transpose_naive(input, case.kernel_size, **arguments), str(dtype))
        assert columns.is_contiguous()
    for name, arrange in MEMORY_FORMATS.items():
        input = arrange(random_tensor(case.output_shape, torch.float32, device))
        columns = uc.unfold_transpose(input, case.kernel_size, **arguments)
        assert_same_bits(columns, unfold_transpose_naive(input, case.kernel_size, **arguments), name)


@pytest.mark.parametrize("case", [case for case in CASES_2D if case.symmetric], ids=lambda case: case.name)
def test_two_axes_are_torchs(case: Case, device: torch.device) -> None:
    """The same arguments in the same order."""
    window = (case.dilation, case.torch_padding, case.stride)
    for dtype in (*FLOATS, *COMPLEX):
        input = random_tensor(case.input_shape, dtype, device)
        assert_same_bits(uc.unfold(input, case.kernel_size, *window), F.unfold(input, case.kernel_size, *window))
    # Sums of integers are exact in any order, so that the two must agree to the bit.
    for dtype in (torch.float32, torch.float64, *COMPLEX):
        columns = torch.randint(-99, 99, case.columns_shape, device=device).to(dtype)
        expected = F.fold(columns, case.input_size, case.kernel_size, *window)
        assert torch.equal(uc.fold(columns, case.input_size, case.kernel_size, *window), expected)


# --- properties -------------------------------------------------------------------------------------------------------


@each_case
def test_fold_is_the_adjoint_of_unfold(case: Case, device: torch.device) -> None:
    """Exactly: integers wrap around."""
    input = random_tensor(case.input_shape, torch.int64, device)
    columns = random_tensor(case.columns_shape, torch.int64, device)
    unfolded = uc.unfold(input, case.kernel_size, **case.window)
    folded = uc.fold(columns, case.input_size, case.kernel_size, **case.window)
    assert (unfolded * columns).sum() == (input * folded).sum()


@each_case
def test_the_mean_of_the_patches_is_the_image(case: Case, device: torch.device) -> None:
    """Where a patch covers it; what none covers stays 0."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, *COMPLEX):
        input = torch.randint(1, 9, case.input_shape, device=device).to(dtype)  # their sums are exact in every dtype
        columns = uc.unfold(input, case.kernel_size, **case.window)
        mean = uc.fold(columns, case.input_size, case.kernel_size, **case.window, reduction="mean")
        ones = unfold_naive(torch.ones_like(input, dtype=torch.bool), case.kernel_size, **case.window)
        covered = fold_naive(ones, case.input_size, case.kernel_size, **case.window)
        assert_same_bits(mean, input * covered)


def test_the_mean_counts_every_patch() -> None:
    columns = torch.tensor([[[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]])
    assert uc.fold(columns, (4,), (2,), reduction="mean").tolist() == [[[1.0, 3.5, 4.5, 7.0]]]
    assert uc.fold(columns, (4,), (2,), reduction="sum").tolist() == [[[1.0, 7.0, 9.0, 7.0]]]
    # Zeros in the columns count too: what is averaged is the patches, not the non-zeros.
    assert uc.fold(columns * 0, (4,), (2,), reduction="mean").tolist() == [[[0.0, 0.0, 0.0, 0.0]]]
    # Stride 3 of 2 taps leaves a gap.
    assert uc.fold(columns[..., :2], (6,), (2,), stride=3, reduction="mean").tolist() == [
        [[1.0, 5.0, 0.0, 2.0, 6.0, 0.0]]
    ]


@each_rank
def test_results_do_not_depend_on_the_run_or_the_threads(rank: int, threads: Callable[[int], None]) -> None:
    """Tensors large enough to be shared between threads."""
    size = ((3000,), (60, 50), (20, 15, 10))[rank - 1]
    kernel_size = (5, 3, 2)[:rank]
    input = torch.randn(2, 8, *size)
    unfolded = unfold_naive(input, kernel_size)
    columns = torch.randn(unfolded.shape)
    folded = uc.fold(columns, size, kernel_size)
    exact, magnitude = (fold_naive(values, size, kernel_size) for values in (columns.double(), columns.double().abs()))
    assert_within_rounding(folded, exact, magnitude)
    for count in (1, 2, 3):
        threads(count)
        assert_same_bits(uc.unfold(input, kernel_size), unfolded, f"{count} threads")
        assert_same_bits(uc.fold(columns, size, kernel_size), folded, f"{count} threads")


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
def test_lazily_conjugated_and_negated_views(dtype: torch.dtype, device: torch.device) -> None:
    input = random_tensor((2, 3, 5, 4), dtype, device)
    columns = random_tensor((2, 12, 12), dtype, device)
    views = {"conj": lambda z: z.conj(), "neg": lambda z: torch._neg_view(z), "imag": lambda z: z.conj().imag}
    for name, view in views.items():
        assert_same_bits(uc.unfold(view(input), 2), unfold_naive(view(input).clone(), 2), name)
        assert_same_bits(uc.fold(view(columns), (5, 4), 2), uc.fold(view(columns).clone(), (5, 4), 2), name)
        assert_same_bits(uc.unfold_transpose(view(input), 2), unfold_transpose_naive(view(input).clone(), 2), name)


# --- how they may be called -------------------------------------------------------------------------------------------


def test_unfold_transpose_spaces_out_only_what_is_read(device: torch.device) -> None:
    """Whatever the stride: with the zeros between, or behind, these images would not fit into any memory."""
    image = random_tensor((2, 3, 4, 1), torch.float32, device)
    near = uc.unfold_transpose(image, (2, 2), stride=(1, 2), padding=(1, 0))
    assert_same_bits(uc.unfold_transpose(image, (2, 2), stride=(1, 2**40), padding=(1, 0)), near)
    pair = random_tensor((1, 1, 2), torch.float32, device)
    # Of o = i * stride - padding + tap, the outputs are those between the two elements of the image.
    assert uc.unfold_transpose(pair, (1,), stride=2**40, padding=2**39).shape == (1, 1, 1)
    assert uc.unfold_transpose(pair, (1,), stride=2**40, padding=2**39).eq(0).all()


@each_rank
def test_unbatched(rank: int, device: torch.device) -> None:
    kernel_size, size = (3, 2, 2)[:rank], (6, 5, 4)[:rank]
    input = random_tensor((3, *size), torch.float32, device)
    columns = uc.unfold(input, kernel_size, padding=1)
    assert_same_bits(columns, uc.unfold(input[None], kernel_size, padding=1)[0])
    folded = uc.fold(columns, size, kernel_size, padding=1)
    assert_same_bits(folded, uc.fold(columns[None], size, kernel_size, padding=1)[0])
    mean = uc.fold(columns, size, kernel_size, padding=1, reduction="mean")
    assert_same_bits(mean, uc.fold(columns[None], size, kernel_size, padding=1, reduction="mean")[0])
    transposed = uc.unfold_transpose(input, kernel_size, stride=2)
    assert_same_bits(transposed, uc.unfold_transpose(input[None], kernel_size, stride=2)[0])


@each_rank
def test_the_rank_in_the_name_spreads_an_int(rank: int, device: torch.device) -> None:
    input = random_tensor((2, 3, *(7, 6, 5)[:rank]), torch.float32, device)
    window = {"dilation": 2, "padding": 1, "stride": 2}
    spread = {name: (value,) * rank for name, value in window.items()}
    columns = uc.unfold(input, (2,) * rank, **spread)
    assert_same_bits(UNFOLD[rank](input, 2, **window), columns)
    assert_same_bits(uc.unfold(input, [2] * rank, **window), columns)
    folded = uc.fold(columns, input.shape[2:], (2,) * rank, **spread)
    assert_same_bits(FOLD[rank](columns, tuple(input.shape[2:]), 2, **window), folded)
    transposed = uc.unfold_transpose(input, (2,) * rank, **spread, output_padding=(1,) * rank)
    assert_same_bits(UNFOLD_TRANSPOSE[rank](input, 2, **window, output_padding=1), transposed)


def test_an_int_kernel_means_two_axes(device: torch.device) -> None:
    input = random_tensor((2, 3, 5, 5), torch.float32, device)
    columns = uc.unfold(input, 3, 1, 1, 2)
    assert_same_bits(columns, F.unfold(input, 3, 1, 1, 2))
    torch.testing.assert_close(uc.fold(columns, 5, 3, 1, 1, 2), F.fold(columns, 5, 3, 1, 1, 2))
    assert_same_bits(uc.unfold_transpose(input, 2), unfold_transpose_naive(input, (2, 2)))


def test_padding_may_differ_from_axis_to_axis_and_end_to_end(device: torch.device) -> None:
    input = random_tensor((2, 3, 5, 4), torch.int16, device)
    for padding in ((1, 2), ((1, 1), (2, 2)), [[1, 1], 2]):
        assert_same_bits(uc.unfold(input, 3, padding=padding), unfold_naive(input, 3, padding=(1, 2)), str(padding))
    expected = unfold_naive(F.pad(input, (0, 1, 2, 0)), 3)
    assert_same_bits(uc.unfold(input, 3, padding=((2, 0), (0, 1))), expected)


def test_words_for_the_padding(device: torch.device) -> None:
    input = random_tensor((1, 2, 7, 6), torch.float32, device)
    assert_same_bits(uc.unfold(input, 3, padding="valid"), unfold_naive(input, 3))
    # ceil(7 / 2) = 4 and ceil(6 / 3) = 2 positions need 2 and 1 elements of padding; the odd one goes to the high end.
    columns = uc.unfold(input, (3, 4), padding="same", stride=(2, 3))
    assert_same_bits(columns, unfold_naive(input, (3, 4), padding=((1, 1), (0, 1)), stride=(2, 3)))
    assert columns.shape == (1, 24, 8)


@each_rank
def test_no_channels(rank: int, device: torch.device) -> None:
    input = torch.empty(2, 0, *(4, 3, 3)[:rank], device=device)
    kernel_size = (2, 2, 2)[:rank]
    columns = uc.unfold(input, kernel_size)
    assert_same_bits(columns, unfold_naive(input, kernel_size))
    assert_same_bits(uc.fold(columns, tuple(input.shape[2:]), kernel_size), input)


def test_empty_spatial_axes_that_padding_fills(device: torch.device) -> None:
    """An axis of size 0 is no error where the padding leaves something to unfold: all zeros."""
    input = torch.empty(2, 3, 0, 4, device=device)
    columns = uc.unfold(input, 2, padding=1)
    assert_same_bits(columns, torch.zeros(2, 12, 5, device=device))
    assert uc.fold(columns, (0, 4), 2, padding=1).shape == (2, 3, 0, 4)
