"""How gradients of weights are computed on CUDA: in pieces of channels, in pieces of positions, or by element, in tiles
and splits that follow from the problem. Run by the emulator."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from cases import CASES, Case, channels_last, make_case
from compare import assert_same_bits, assert_within_rounding
from computations import expected_by_torch, operands
from emulator.build import load
from emulator.convolutions import compute, steps, view, workspace_limit
from emulator.gemm import ARRANGEMENTS, TILED, VARIED, check_formats, rounded_to_tf32
from emulator.kernels import MOST, WARP_SCHEDULES, by_name, guarded, set_schedule

pytestmark = pytest.mark.usefixtures("plain_engine")

NAME, ENGINE = "conv_weight_grad", "implicit_gemm"
PAIRS = list(itertools.product(ARRANGEMENTS, repeat=2))
DTYPES = ["float16", "bfloat16", "tf32", "float32", "float64"]
_PADDED = {"kernel_size": (3, 3, 3), "padding": ((1, 1),) * 3}

# Channels and rows are whole pieces, of 8 elements at most. Tiles are of 128 terms by 64 or 128 rows (64 by 64 in
# double), chunks of 64 bytes of positions.
WIDE = make_case("wide", 2, batch=3, in_channels=24, out_channels=72, input_size=(9, 8), **_PADDED)
LONG = make_case("long", 2, batch=4, in_channels=8, out_channels=16, input_size=(17, 19), **_PADDED)
PIECES = [
    WIDE,
    LONG,
    make_case(
        "all_at_once", 2, in_channels=32, out_channels=48, input_size=(11, 12), groups=2, kernel_size=(3, 2),
        stride=(2, 1), dilation=(1, 3), padding=((2, 0), (1, 3)),
    ),
    make_case("line", 1, batch=3, in_channels=16, out_channels=8, input_size=(21,), stride=(2,), **_PADDED),
    make_case("volume", 3, in_channels=8, out_channels=8, input_size=(3, 4, 5), **_PADDED),
    # As many positions as pieces have elements, so that those of contiguous tensors are pieces too.
    make_case("pointwise", 2, batch=3, in_channels=24, out_channels=72, input_size=(4, 6), kernel_size=(1, 1)),
    make_case("pointwise_strided", 2, in_channels=8, out_channels=8, input_size=(8, 8), kernel_size=(1, 1),
              stride=(2, 2)),
    # Pieces of positions in grad_output alone.
    make_case("even_result", 2, batch=3, in_channels=3, out_channels=70, input_size=(8, 8), **_PADDED),
]  # fmt: skip


def _plain(dtype: str) -> torch.dtype:
    return getattr(torch, "float32" if dtype == "tf32" else dtype)


def tensors_of(case: Case, dtype: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """grad_output and input, and what their gradient must be, of rounded operands for TF32, with its magnitude."""
    torch.backends.cudnn.conv.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    tensors = operands(NAME, case, _plain(dtype), "cpu")
    rounded = [*map(rounded_to_tf32, tensors[:2]), None] if dtype == "tf32" else tensors
    return tensors[:2], *expected_by_torch(NAME, case, rounded)


def check(case: Case, dtype: str) -> None:
    tensors, exact, magnitude = tensors_of(case, dtype)
    for grad, image in PAIRS:
        # Memory that may not be touched lies before the tensors, or behind them.
        guard_end = dtype in ("bfloat16", "tf32", "float64")
        actual = compute(NAME, case, grad(tensors[0]), image(tensors[1]), None, guard_end=guard_end)
        assert_within_rounding(actual, exact, magnitude, f"{dtype}, {grad.__name__} {image.__name__}")


def report_of(case: Case, dtype: str, arrange: object = channels_last) -> dict[str, str]:
    """What `explain` is told of the engine."""
    torch.backends.cudnn.conv.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    shapes = (case.output_shape, case.input_shape)
    tensors = [arrange(torch.empty(shape, dtype=_plain(dtype))) for shape in shapes]
    (step,) = steps(NAME, case, *tensors, None)
    return step


# --- values -----------------------------------------------------------------------------------------------------------


@by_name(PIECES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pair_of_memory_formats(case: Case, dtype: str) -> None:
    check(case, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "tf32"])
def test_wide_tiles(dtype: str) -> None:
    for case, busy, wide in ((WIDE, 1, True), (WIDE, 2, True), (LONG, 1, False)):
        load().set_limits(index=MOST, blocks=MOST, busy=busy)
        assert report_of(case, dtype)["tile"] == ("128x128" if wide else "64x128")
        check(case, dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_channels_between_others(dtype: str) -> None:
    """They have the strides of pieces, but begin anywhere."""
    (grad, image), exact, magnitude = tensors_of(LONG, dtype)
    grad = guarded(channels_last(grad), load(), True)
    batch, channels, *sizes = image.shape
    for offset in (0, 3, 8):
        more = channels_last(torch.full((batch, 24, *sizes), torch.nan, dtype=image.dtype))
        among = guarded(more, load(), True)[:, offset : offset + channels]
        among.copy_(image)
        actual = torch.empty(LONG.weight_shape, dtype=image.dtype)
        views = [view(load(), tensor) for tensor in (grad, among, actual)]
        load().conv_weight_grad(*views[:2], LONG.op_window, LONG.groups, views[2])
        assert_within_rounding(actual, exact, magnitude, f"from channel {offset} on")


def test_a_gradient_that_repeats_one_number() -> None:
    """As that of a sum, whose strides are all 0."""
    for case in (WIDE, PIECES[5]):
        tensors, _, _ = tensors_of(case, "float16")
        grad = torch.ones((), dtype=torch.float16).expand(case.output_shape)
        exact, magnitude = expected_by_torch(NAME, case, [grad.contiguous(), tensors[1], None])
        for arrange in ARRANGEMENTS:
            actual = compute(NAME, case, grad, arrange(tensors[1]), None)
            assert_within_rounding(actual, exact, magnitude, arrange.__name__)


# --- shared memory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("rows", [64, 128])
def test_what_a_warp_reads_at_once_is_in_different_banks(dtype: str, rows: int) -> None:
    size = _plain(dtype).itemsize
    offsets = torch.empty(64 // size, rows * size // 16, dtype=torch.int32)
    load().probe(f"offsets_{dtype}_{rows}", (1, 1, 1), (32, 1, 1), 0, 0, offsets.data_ptr())
    assert offsets.flatten().sort().values.tolist() == [*range(0, 64 * rows, 16)], "each piece has its place"
    # At once: a piece at 8 k, for ldmatrix; or two at 4 k.
    deep, across = (8, 1) if size == 2 else (4, 2)
    together = offsets.unfold(0, deep, deep).unfold(1, across, across).reshape(-1, 8)
    assert ((together % 128).sort().values == torch.arange(0, 128, 16)).all()


# --- what must not matter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "tf32", "float64"])
def test_the_order_of_threads_and_blocks_does_not_matter(dtype: str) -> None:
    """Each pair of formats has loads of its own, whose barriers are the same for all types."""
    tensors, exact, magnitude = tensors_of(WIDE, dtype)
    for (grad, image), busy in itertools.product(PAIRS if dtype == "float16" else PAIRS[::3], (128, 1)):
        results = []
        for order, blocks in zip(WARP_SCHEDULES, (MOST, 2, 2, MOST), strict=True):
            set_schedule(load(), *order)
            load().set_limits(index=MOST, blocks=blocks, busy=busy)
            results.append(compute(NAME, WIDE, grad(tensors[0]), image(tensors[1]), None))
        assert_within_rounding(results[0], exact, magnitude)
        for result in results[1:]:
            assert_same_bits(result, results[0])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_one_sum_is_the_same_however_its_operands_lie(dtype: str) -> None:
    """Every way to shared memory leads to the same products in the same order."""
    load().set_limits(index=MOST, blocks=MOST, busy=1)
    for case in PIECES:
        tensors, _, _ = tensors_of(case, dtype)
        results = [compute(NAME, case, grad(tensors[0]), image(tensors[1]), None) for grad, image in PAIRS]
        for result in results[1:]:
            assert_same_bits(result, results[0], case.name)


# --- the choice -------------------------------------------------------------------------------------------------------


def test_what_is_copied_in_pieces() -> None:
    for dtype in DTYPES:
        assert report_of(LONG, dtype)["why"].startswith("pieces of channels")
        assert report_of(LONG, dtype, Tensor.contiguous)["why"].startswith("patches are gathered")
    for odd in ({"in_channels": 12}, {"out_channels": 12}):
        case = dataclasses.replace(LONG, **odd)
        assert report_of(case, "float16")["why"].startswith("patches are gathered")
        assert report_of(case, "float32")["why"].startswith("pieces of channels")


@pytest.mark.parametrize("arrange", ARRANGEMENTS)
def test_a_long_depth_is_split_and_a_large_weight_is_not(arrange: object) -> None:
    def plan(dtype: str, **changes: object) -> tuple[str, int, int]:
        case = make_case("planned", 2, **{"batch": 8, "kernel_size": (3, 3), **changes})
        report = report_of(case, dtype, arrange)
        splits = int(report["splits"])
        rows, terms = map(int, report["tile"].split("x"))
        blocks = -(-case.out_channels // rows) * -(-case.in_channels * 9 // terms)
        bytes = case.in_channels * case.out_channels * 9 * max(_plain(dtype).itemsize, 4) * splits
        assert int(report["tasks"]) == blocks * splits
        assert int(report["shared_bytes"]) == (bytes if splits > 1 else 0)
        return report["tile"], blocks, splits

    pieces = arrange is channels_last
    # 57344 positions of 2 blocks: as many splits as keep a GPU busy twice over.
    assert plan("float16", in_channels=16, out_channels=32, input_size=(58, 130)) == ("64x128", 2, 128)
    # 8 positions for 2304 by 256 sums: nothing to split, and blocks enough as they are.
    assert plan("float16", in_channels=512, out_channels=256, input_size=(3, 3)) == ("64x128", 144, 1)
    wide = "128x128" if pieces else "64x128"
    assert plan("float16", in_channels=512, out_channels=512, input_size=(3, 3))[0] == wide
    assert plan("float16", in_channels=256, out_channels=128, input_size=(58, 58))[0] == wide
    # A second tile of 128 rows would be half empty.
    assert plan("float16", in_channels=256, out_channels=136, input_size=(58, 58))[0] == "64x128"
    assert plan("float32", in_channels=256, out_channels=128, input_size=(58, 58))[0] == "64x128"
    assert plan("float64", in_channels=256, out_channels=128, input_size=(58, 58))[0] == "64x64"


def test_a_small_workspace_takes_the_splits_away() -> None:
    tensors, exact, magnitude = tensors_of(LONG, "float16")
    arranged = [*map(channels_last, tensors)]
    sums = 4 * LONG.out_channels * LONG.in_channels * 9
    for limit, launches in ((3 * sums, 2), (2 * sums - 1, 1)):
        with workspace_limit(limit):
            before = load().launch_count()
            actual = compute(NAME, LONG, *arranged, None)
        assert load().launch_count() - before == launches
        assert_within_rounding(actual, exact, magnitude)


# --- every situation --------------------------------------------------------------------------------------------------

# Chunks of several images and of parts of rows; more terms and rows than a tile has; sums that are split.
SPLIT = [
    make_case(name, 2, **changes)
    for name, changes in {
        "long": {"batch": 3, "in_channels": 5, "out_channels": 7, "input_size": (17, 19), **_PADDED},
        "many_terms": {"batch": 3, "in_channels": 19, "out_channels": 70, "input_size": (5, 4), **_PADDED},
    }.items()
]
# The caller fills the gradient of an empty batch.
WITH_BATCH = [case for case in CASES if case.batch]


@by_name([*WITH_BATCH, *TILED, *SPLIT])
def test_weight_gradients_of_float32(case: Case) -> None:
    check_formats("conv_weight_grad", case, torch.float32)


@by_name([*(case for case in WITH_BATCH if case.rank == 2), *SPLIT])
def test_weight_gradients_of_float16(case: Case) -> None:
    check_formats("conv_weight_grad", case, torch.float16, guard_end=False)


@by_name([*(case for case in VARIED if case.batch), *SPLIT])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weight_gradients_of_other_types(case: Case, dtype: torch.dtype) -> None:
    check_formats("conv_weight_grad", case, dtype)


@by_name([*(case for case in VARIED if case.batch), *SPLIT])
def test_weight_gradients_of_tf32(case: Case) -> None:
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    tensors = operands("conv_weight_grad", case, torch.float32, "cpu")
    exact, magnitude = expected_by_torch("conv_weight_grad", case, [*map(rounded_to_tf32, tensors[:2]), None])
    for first, second in itertools.product(ARRANGEMENTS, repeat=2):
        actual = compute("conv_weight_grad", case, first(tensors[0]), second(tensors[1]), None)
        assert_within_rounding(actual, exact, magnitude, f"{first.__name__}, {second.__name__}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_split_sums_are_added_in_order_whatever_the_schedule(dtype: torch.dtype) -> None:
    case = SPLIT[0]
    tensors = operands("conv_weight_grad", case, dtype, "cpu")
    for arrange in ARRANGEMENTS:
        first, second = map(arrange, tensors[:2])
        results = []
        for order, blocks in zip(WARP_SCHEDULES, (MOST, 2, 2, MOST), strict=True):
            set_schedule(load(), *order)
            load().set_limits(index=MOST, blocks=blocks)
            before = load().launch_count()
            results.append(compute("conv_weight_grad", case, first, second, None))
            assert load().launch_count() - before == 2, "sums, and sums of them"
        for result in results[1:]:
            assert_same_bits(result, results[0])


def test_split_sums_stay_inside_of_the_workspace() -> None:
    case = SPLIT[0]
    tensors = operands("conv_weight_grad", case, torch.float16, "cpu")
    exact, magnitude = expected_by_torch("conv_weight_grad", case, tensors)
    bytes = 4 * math.prod(case.weight_shape)
    for limit, launches in ((3 * bytes, 2), (2 * bytes - 1, 1)):
        with workspace_limit(limit):
            before = load().launch_count()
            actual = compute("conv_weight_grad", case, *tensors)
        assert_within_rounding(actual, exact, magnitude)
        assert load().launch_count() - before == launches
