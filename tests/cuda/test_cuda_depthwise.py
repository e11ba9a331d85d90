"""The direct CUDA kernels for depthwise convolution and few channels per group, run by the emulator."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import MEMORY_FORMATS, Case, channels_last
from compare import assert_same_bits, assert_within_rounding
from emulator.build import load
from emulator.direct import (
    DIRECT_CASES,
    blank,
    correlate,
    expected,
    magnitude,
    operands,
    takes,
    weight_layout,
    weight_sums,
)
from emulator.kernels import INDEX_LIMITS, MOST, SCHEDULES, by_name, geometry_of, layout_of, set_schedule

FORMATS = {"contiguous": torch.Tensor.contiguous, "channels_last": channels_last}
CASES = [case for case in DIRECT_CASES if takes(case)]


pytestmark = pytest.mark.usefixtures("plain_emulator")

# Both formats of both tensors, each with another order of threads, and the indices of large tensors.
VARIANTS = [
    ("contiguous", "contiguous", "int", SCHEDULES[0]),
    ("channels_last", "channels_last", "int", SCHEDULES[1]),
    ("contiguous", "channels_last", "int", SCHEDULES[2]),
    ("channels_last", "contiguous", "long", SCHEDULES[0]),
    ("contiguous", "contiguous", "long", SCHEDULES[1]),
]


def use(index: str, schedule: tuple[str, int]) -> None:
    set_schedule(load(), *schedule)
    load().set_limits(index=INDEX_LIMITS[index], blocks=MOST)


@pytest.mark.parametrize("backward", [False, True], ids=["conv", "input_grad"])
@by_name(CASES)
def test_correlate(case: Case, backward: bool) -> None:
    name = "input_grad" if backward else "conv"
    tensors = operands(case, torch.float32)
    exact, bound = expected(case, tensors)[name], magnitude(case, tensors)[name]
    source, target = ("y", "x") if backward else ("x", "y")
    for of_source, of_result, index, schedule in VARIANTS:
        use(index, schedule)
        before = load().launch_count()
        actual, plan = correlate(
            case,
            FORMATS[of_source](tensors[source]),
            tensors["w"],
            tensors[f"{target}_bias"],
            blank(tensors[target], FORMATS[of_result]),
            backward=backward,
            guard_end=index == "int",
        )
        assert plan["fits"]
        assert load().launch_count() - before == (case.batch > 0), "one launch for the whole batch"
        assert_within_rounding(actual, exact, bound, f"{of_source} to {of_result}, {index}")


@by_name([case for case in CASES if case.batch > 0])
def test_weight_sums(case: Case) -> None:
    tensors = operands(case, torch.float32)
    exact, bound = expected(case, tensors)["weight_grad"], magnitude(case, tensors)["weight_grad"]
    for of_gradient, of_image, index, schedule in VARIANTS:
        use(index, schedule)
        before = load().launch_count()
        actual, plan = weight_sums(
            case, FORMATS[of_gradient](tensors["y"]), FORMATS[of_image](tensors["x"]), guard_end=index == "int"
        )
        assert plan["fits"]
        assert load().launch_count() - before == (2 if plan["splits"] > 1 else 1)
        assert_within_rounding(actual, exact, bound, f"{of_gradient} and {of_image}, {index}")


EVERYTHING = next(case for case in CASES if case.name == "volume_strided-3d")
SOME = [case for case in CASES if case.name in ("three-2d", "stride_2-2d", "causal-1d", "fours-2d", "multiplier_3-2d")]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@by_name([*SOME, EVERYTHING])
def test_dtypes(case: Case, dtype: torch.dtype) -> None:
    tensors = operands(case, dtype)
    exact, bound = expected(case, tensors), magnitude(case, tensors)
    for name, to_format in FORMATS.items():
        for key, actual in compute_all(case, tensors, to_format).items():
            assert_within_rounding(actual, exact[key], bound[key], f"{key}, {name}")


def compute_all(case: Case, tensors: dict[str, Tensor], to_format: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Forward and both gradients, of tensors of one memory format."""
    x, y = to_format(tensors["x"]), to_format(tensors["y"])
    forward = correlate(case, x, tensors["w"], tensors["y_bias"], blank(tensors["y"], to_format), backward=False)
    backward = correlate(case, y, tensors["w"], tensors["x_bias"], blank(tensors["x"], to_format), backward=True)
    return {
        "conv": forward[0].contiguous(),
        "input_grad": backward[0].contiguous(),
        "weight_grad": weight_sums(case, y, x)[0],
    }


@by_name(SOME)
def test_bits_do_not_depend_on_the_order_of_threads_and_blocks(case: Case) -> None:
    tensors = operands(case, torch.float32)
    for to_format in FORMATS.values():
        use("int", SCHEDULES[0])
        first = compute_all(case, tensors, to_format)
        for schedule, blocks in [(SCHEDULES[1], MOST), (SCHEDULES[2], 1), (SCHEDULES[0], 2)]:
            use("int", schedule)
            load().set_limits(index=MOST, blocks=blocks)
            for key, actual in compute_all(case, tensors, to_format).items():
                assert_same_bits(actual, first[key], f"{key}, {schedule}, {blocks} blocks")


@by_name(SOME)
def test_an_image_does_not_depend_on_the_others(case: Case) -> None:
    tensors = operands(dataclasses.replace(case, batch=3), torch.float32)
    together = compute_all(dataclasses.replace(case, batch=3), tensors, FORMATS["contiguous"])
    alone = compute_all(
        dataclasses.replace(case, batch=1),
        tensors | {name: tensors[name][1:2] for name in ("x", "y")},
        FORMATS["contiguous"],
    )
    for key in ("conv", "input_grad"):
        assert_same_bits(together[key][1:2].contiguous(), alone[key], key)


def test_a_weight_sum_keeps_to_the_workspace() -> None:
    case = next(case for case in CASES if case.name == "three-2d")
    tensors = operands(case, torch.float32)
    exact, bound = expected(case, tensors)["weight_grad"], magnitude(case, tensors)["weight_grad"]
    numel = 4 * tensors["w"].numel()
    splits = []
    for limit in (32 << 20, 2 * numel, numel):
        actual, plan = weight_sums(case, tensors["y"], tensors["x"], workspace_limit=limit)
        assert_within_rounding(actual, exact, bound, f"{limit} bytes")
        assert plan["workspace_bytes"] <= limit
        splits.append(plan["splits"])
    assert splits[0] > splits[1] > splits[2] == 1


def test_infinite_elements_reach_their_sums_alone() -> None:
    """Neither padding nor what lies beyond the last window is multiplied with them."""
    case = _named("three_cropped-2d")
    for where in itertools.product((0, 8, 10), (6, 12, 13)):
        tensors = {name: tensor.abs() + 1 for name, tensor in operands(case, torch.float32).items()}
        tensors["x"][0, 1][where] = torch.inf
        exact = expected(case, tensors)
        for to_format in FORMATS.values():
            actual = compute_all(case, tensors, to_format)
            for key in ("conv", "weight_grad"):
                assert torch.equal(actual[key].isfinite(), exact[key].isfinite()), f"{key}, {where}"
                assert not actual[key].isnan().any()


def _named(name: str, **changes: Any) -> Case:
    return dataclasses.replace(next(case for case in CASES if case.name == name), **changes)


def test_images_may_lie_beyond_32_bits() -> None:
    """Only what is within one image has to be reached by the index type; here two images are 2^31 elements apart."""
    case = dataclasses.replace(
        _named("one_row-2d"), batch=2, in_channels=1, out_channels=1, groups=1, input_size=(1, 9)
    )
    distance = 2**31 + 64
    flat = torch.frombuffer(load().Guarded(2 * (distance + 9), True), dtype=torch.float16)
    x = flat.as_strided(case.input_shape, (distance, 9, 9, 1))
    tensors = operands(case, torch.float16)
    x.copy_(tensors["x"])
    result = torch.zeros(case.output_shape, dtype=torch.float16)
    load().correlate_direct(
        *(load().DType.float16, False, geometry_of(case), x.data_ptr(), layout_of(x, 1)),
        *(tensors["w"].data_ptr(), weight_layout(tensors["w"], 1, swap=False)),
        *(result.data_ptr(), layout_of(result, 1), tensors["y_bias"].data_ptr()),
    )
    assert "Problem<int>" in load().last_launch()[0]
    assert_within_rounding(result, expected(case, tensors)["conv"], magnitude(case, tensors)["conv"])


def test_what_does_not_fit_is_left_to_others() -> None:
    case = _named("one_row-2d", kernel_size=(1, 20000), padding=((0, 0), (10000, 10000)))
    tensors = operands(case, torch.float32)
    _, plan = correlate(case, tensors["x"], tensors["w"], None, tensors["y"], backward=False)
    assert not plan["fits"]
    _, plan = weight_sums(case, tensors["y"], tensors["x"])
    assert not plan["fits"]


@pytest.mark.parametrize("name", MEMORY_FORMATS)
def test_strides_may_be_any(name: str) -> None:
    """Of the operands; of the weight too."""
    case = _named("three-2d")
    tensors = operands(case, torch.float32)
    tensors |= {key: MEMORY_FORMATS[name](tensors[key]) for key in ("x", "y", "w")}
    exact, bound = expected(case, tensors), magnitude(case, tensors)
    for key, actual in compute_all(case, tensors, lambda tensor: tensor).items():
        assert_within_rounding(actual, exact[key], bound[key], key)
