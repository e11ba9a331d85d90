"""The CUDA kernels for few channels and one group, run by the emulator, against convolutions of torch in float64."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import MEMORY_FORMATS, RESULT_FORMATS, Case
from compare import assert_same_bits, assert_within_rounding
from computations import expected_by_torch, operands
from emulator.build import load
from emulator.convolutions import compute, engines, forced, workspace_limit
from emulator.gemm import rounded_to_tf32
from emulator.kernels import MOST, WARP_SCHEDULES, set_schedule
from emulator.stem import ARRANGEMENTS, ENGINE, NAMED, PASSES, SITUATIONS, SOME, arrange, check_infinite

pytestmark = pytest.mark.usefixtures("plain_engine")


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


def check(name: str, case: Case, dtype: torch.dtype, tf32: bool = False, emulated: Any = None) -> None:
    """Both memory formats of both images, in orders of threads that differ."""
    tensors = operands(name, case, dtype, "cpu")
    rounded = [*map(rounded_to_tf32, tensors[:2]), tensors[2]] if tf32 else tensors
    exact, magnitude = expected_by_torch(name, case, rounded)
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
        f"stem_{part}.cu": [(include := f'#include "cuda/stem/stem_{part}.cuh"', f"{TURING}\n{include}")]
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
    exact, magnitude = expected_by_torch(name, case, arranged)
    to_format = RESULT_FORMATS.get(strides, Tensor.contiguous) if name == "conv" else Tensor.contiguous
    assert engines(name, case, *arranged, to_format=to_format) == [ENGINE]
    assert_within_rounding(compute(name, case, *arranged, to_format=to_format), exact, magnitude)


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
    exact, magnitude = expected_by_torch("conv_weight_grad", case, tensors)
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
    assert_within_rounding(result, *expected_by_torch("conv", case, [first, second, bias]))
