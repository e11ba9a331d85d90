"""The CUDA kernels for few channels and one group, run by the emulator, against the reference in plain PyTorch."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import CASES, MEMORY_FORMATS, RESULT_FORMATS, Case, channels_last, make_case
from compare import assert_same_bits, assert_within_rounding
from computations import expected_of, operands
from emulator.build import load
from emulator.convolutions import compute, engines, forced, plainly, workspace_limit
from emulator.kernels import MOST, WARP_SCHEDULES, set_schedule
from test_cuda_implicit_gemm import rounded_to_tf32

ENGINE = "stem"
ARRANGEMENTS: tuple[Callable[[Tensor], Tensor], ...] = (Tensor.contiguous, channels_last)


@pytest.fixture(autouse=True)
def plain_emulator() -> Iterator[None]:
    with plainly(ENGINE):
        yield


def stem(name: str, rank: int, in_channels: int = 3, out_channels: int = 16, **changes: Any) -> Case:
    return make_case(
        name, rank, in_channels=in_channels, out_channels=out_channels, **{"bias": True, "groups": 1} | changes
    )


# Tiles are of up to 128 positions and 64 rows (32 in double), steps of 16, 8 or 4 terms or positions.
_PADDED = {"kernel_size": (3, 3, 3), "padding": ((1, 1),) * 3}
STEMS = [
    # First layers of networks, on small images. With padding, pieces of lines begin before the image.
    stem(
        "seven_by_two",
        2,
        out_channels=70,
        kernel_size=(7, 7),
        stride=(2, 2),
        padding=((3, 3), (3, 3)),
        input_size=(14, 48),
    ),
    stem("patches_of_four", 2, out_channels=96, kernel_size=(4, 4), stride=(4, 4), input_size=(32, 40)),
    stem("three_by_two", 2, out_channels=24, **_PADDED, stride=(2, 2), input_size=(16, 23)),
    stem("speech", 1, 1, 24, kernel_size=(10,), stride=(5,), input_size=(720,)),
    stem("volume", 3, 3, 8, kernel_size=(2, 4, 4), stride=(2, 4, 4), input_size=(4, 12, 16)),
    # Rows of lines and of positions that are not whole pieces, and two channels to tell from their neighbours.
    stem("odd", 2, 2, 9, **_PADDED, dilation=(1, 2), input_size=(7, 19)),
    stem("four_channels", 2, 4, 16, **_PADDED, input_size=(5, 16)),
    stem("one_column", 2, 3, 8, kernel_size=(3, 1), padding=((1, 1), (0, 0)), input_size=(70, 1)),
    # Chunks of terms: whole ones, and a last one with fewer; in pieces and not.
    stem("patches_of_sixteen", 2, 3, 40, batch=1, kernel_size=(16, 16), stride=(16, 16), input_size=(48, 64)),
    stem("nineteen", 2, 2, 9, batch=1, kernel_size=(19, 19), padding=((9, 9), (9, 9)), input_size=(10, 20)),
    stem("long_window", 1, 1, 17, batch=1, kernel_size=(3001,), padding=((1500, 1500),), input_size=(150,)),
]
FEW = [case for case in CASES if case.groups == 1 and case.in_channels <= 4]
SITUATIONS = [*(dataclasses.replace(case, bias=True) for case in FEW), *STEMS]
NAMED = {case.name: case for case in SITUATIONS}
SOME = [NAMED[name] for name in ("seven_by_two-2d", "speech-1d", "volume-3d", "odd-2d", "nineteen-2d", "dilation-3d")]
PASSES = ["conv", "conv_weight_grad"]


def by_name(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def of_both(name: str, cases: list[Case]) -> list[Case]:
    """The caller fills the weight gradient of an empty batch."""
    return [case for case in cases if case.batch > 0 or name == "conv"]


each_pass = pytest.mark.parametrize("name", PASSES)
every_case = pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name in PASSES for case in of_both(name, SITUATIONS)],
    ids=lambda value: value if isinstance(value, str) else value.name,
)


def arrange(name: str, tensors: list[Tensor | None], first: Any, second: Any) -> tuple[list[Tensor | None], Any]:
    """The operands and the format of the result: the two tensors that are images are in those formats."""
    if name == "conv":
        return [first(tensors[0]), *tensors[1:]], second
    return [first(tensors[0]), second(tensors[1]), None], Tensor.contiguous


def check(name: str, case: Case, dtype: torch.dtype, tf32: bool = False, emulated: Any = None) -> None:
    """Both memory formats of both images, in orders of threads that differ."""
    tensors = operands(name, case, dtype, "cpu")
    rounded = [*map(rounded_to_tf32, tensors[:2]), tensors[2]] if tf32 else tensors
    exact, magnitude = expected_of(name, case, rounded)
    for (first, second), order in zip(itertools.product(ARRANGEMENTS, repeat=2), WARP_SCHEDULES, strict=True):
        set_schedule(emulated or load(), *order)
        arranged, to_format = arrange(name, tensors, first, second)
        if emulated is None and case.batch > 0:
            assert engines(name, case, *arranged, to_format=to_format) == [ENGINE]
        # Memory that ends beside a guard begins at any address: then there are no pieces.
        for guard_end in (False, True):
            actual = compute(name, case, *arranged, to_format=to_format, guard_end=guard_end, emulated=emulated)
            what = f"{dtype}, {first.__name__} and {second.__name__}, {guard_end}"
            assert_within_rounding(actual, exact, magnitude, what)


# --- values -----------------------------------------------------------------------------------------------------------


@every_case
def test_float16(name: str, case: Case) -> None:
    check(name, case, torch.float16)


@each_pass
@by_name(SOME)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_other_types(name: str, case: Case, dtype: torch.dtype) -> None:
    check(name, case, dtype)


@each_pass
@by_name(SOME)
def test_tf32(name: str, case: Case) -> None:
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    check(name, case, torch.float32, tf32=True)


@each_pass
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_turing(name: str, dtype: torch.dtype) -> None:
    """sm_75 has no asynchronous copies, a smaller matrix instruction for float16 and none for bfloat16."""
    edits = {
        f"cuda/stem_{part}.cu": [(f'#include "stem_{part}.cuh"', f'{TURING}\n#include "stem_{part}.cuh"')]
        for part in ("convolve", "weight_grad")
    }
    for case in SOME:
        check(name, case, dtype, emulated=load(edits, "stem_turing"))


TURING = "#define EMULATED_ARCHITECTURE 750"


@each_pass
@pytest.mark.parametrize("strides", MEMORY_FORMATS)
def test_strides_may_be_any(name: str, strides: str) -> None:
    """Of both operands and of the output."""
    case = NAMED["odd-2d"]
    tensors = operands(name, case, torch.float16, "cpu")
    arranged = [*(MEMORY_FORMATS[strides](tensor) for tensor in tensors[:2]), tensors[2]]
    exact, magnitude = expected_of(name, case, arranged)
    to_format = RESULT_FORMATS.get(strides, Tensor.contiguous) if name == "conv" else Tensor.contiguous
    assert engines(name, case, *arranged, to_format=to_format) == [ENGINE]
    assert_within_rounding(compute(name, case, *arranged, to_format=to_format), exact, magnitude)


# No window reads the last row and the last column.
UNREAD = dataclasses.replace(
    NAMED["odd-2d"], padding=((0, 0), (0, 0)), stride=(2, 2), input_size=(8, 20), batch=1, bias=False
)


def check_infinite(name: str, emulated: Any = None) -> None:
    """Those sums are infinite, and none is NaN, that have an infinite element as a term."""
    for where in [(0, 0), (0, 18), (6, 0), (6, 18), (3, 9)]:
        tensors = operands(name, UNREAD, torch.float16, "cpu")
        for tensor in tensors[:2]:
            tensor.abs_().add_(1)
        image = tensors[PASSES.index(name)]
        image[(0, slice(None), *where)] = image[..., -1, :] = image[..., -1] = torch.inf
        exact, _ = expected_of(name, UNREAD, tensors)
        for first, second in itertools.product(ARRANGEMENTS, repeat=2):
            arranged, to_format = arrange(name, tensors, first, second)
            actual = compute(name, UNREAD, *arranged, to_format=to_format, emulated=emulated)
            wrong = (actual.isinf() != exact.isinf()) | actual.isnan()
            assert not wrong.any(), f"{int(wrong.sum())} elements are wrong"


@each_pass
def test_infinite_elements_reach_their_sums_alone(name: str) -> None:
    """No term behind the last one, and no position beyond the last one, is multiplied with them."""
    check_infinite(name)


# --- what must not matter ---------------------------------------------------------------------------------------------


@each_pass
@by_name(SOME[:3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_the_order_of_threads_and_blocks_does_not_matter(name: str, case: Case, dtype: torch.dtype) -> None:
    tensors = operands(name, case, dtype, "cpu")
    for form in ARRANGEMENTS:
        arranged, to_format = arrange(name, tensors, form, form)
        results = []
        for order, blocks in zip(WARP_SCHEDULES, (MOST, 1, 2, MOST), strict=True):
            set_schedule(load(), *order)
            load().set_limits(index=MOST, blocks=blocks)
            results.append(compute(name, case, *arranged, to_format=to_format))
        for result in results[1:]:
            assert_same_bits(result, results[0])


@by_name(SOME)
def test_an_image_does_not_depend_on_the_others(case: Case) -> None:
    case = dataclasses.replace(case, batch=3)
    first, *others = operands("conv", case, torch.float16, "cpu")
    alone = dataclasses.replace(case, batch=1)
    for form in ARRANGEMENTS:
        together = compute("conv", case, form(first), *others, to_format=form)
        for guard_end in (False, True):  # at any address
            single = compute("conv", alone, form(first[1:2]), *others, to_format=form, guard_end=guard_end)
            assert_same_bits(single.contiguous(), together[1:2].contiguous())


def test_a_block_goes_over_several_tiles() -> None:
    """The weights of its rows stay where they are, or come chunk by chunk for each tile."""
    for case in (NAMED["speech-1d"], dataclasses.replace(NAMED["nineteen-2d"], out_channels=64, input_size=(3, 4))):
        case = dataclasses.replace(case, batch=17)
        first, second, bias = operands("conv", case, torch.float16, "cpu")
        results = []
        for busy in (128, 1):
            load().set_limits(index=MOST, blocks=MOST, busy=busy)
            results.append(compute("conv", case, first, second, bias))
        assert load().last_launch()[1] < 17
        assert_same_bits(results[1], results[0])


def test_a_weight_gradient_stays_inside_of_the_workspace() -> None:
    case = NAMED["seven_by_two-2d"]
    tensors = operands("conv_weight_grad", case, torch.float16, "cpu")
    exact, magnitude = expected_of("conv_weight_grad", case, tensors)
    numel = 4 * math.prod(case.weight_shape)
    for limit, launches in ((32 << 20, 2), (2 * numel, 2), (2 * numel - 1, 1)):
        with workspace_limit(limit):
            before = load().launch_count()
            actual = compute("conv_weight_grad", case, *tensors)
            assert load().launch_count() - before == launches
        assert_within_rounding(actual, exact, magnitude, f"{limit} bytes")


# --- the choice -------------------------------------------------------------------------------------------------------


def test_the_engine_is_chosen_where_it_can_be() -> None:
    def engines_of(case: Case, dtype: torch.dtype = torch.float16) -> set[str]:
        return {engine for name in PASSES for engine in engines(name, case, *operands(name, case, dtype, "cpu"))}

    case = NAMED["seven_by_two-2d"]
    with forced("automatic"):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            assert engines_of(case, dtype) == {ENGINE}
        assert engines_of(case, torch.complex64) == {"columns"}
        assert engines_of(dataclasses.replace(case, in_channels=5)) == {"implicit_gemm"}
        assert engines_of(dataclasses.replace(case, in_channels=4, groups=2)) == {"implicit_gemm"}
        # Few positions fit into the box of a block, or hardly an element of it is read.
        for far in (
            {"stride": (3000,), "input_size": (150000,)},
            {"stride": (200,), "kernel_size": (1,), "input_size": (72000,)},
        ):
            assert engines_of(dataclasses.replace(NAMED["speech-1d"], **far)) == {"implicit_gemm"}
        load().set_limits(index=2000, blocks=MOST)
        assert engines_of(case) == {"columns"}, "offsets inside an image must fit 32 bits"


def test_images_may_lie_beyond_32_bits() -> None:
    """Only what is within one image has to be reached by 32 bits; here two are 2^31 elements apart."""
    case = dataclasses.replace(NAMED["speech-1d"], batch=2, input_size=(60,))
    first, second, bias = operands("conv", case, torch.float16, "cpu")
    far = torch.frombuffer(load().Guarded(2 * (2**31 + 124), True), dtype=torch.float16)
    image = far.as_strided(case.input_shape, (2**31 + 64, 60, 1))
    image.copy_(first)
    result = torch.zeros(case.output_shape, dtype=torch.float16)
    code = load().DType.float16
    views = [
        None if t is None else (t.data_ptr(), list(t.shape), list(t.stride()), code)
        for t in (image, second, bias, result)
    ]
    load().conv(*views[:3], case.op_window, 1, views[3])
    assert_within_rounding(result, *expected_of("conv", case, [first, second, bias]))
