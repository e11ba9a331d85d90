"""The direct CUDA kernels for depthwise convolution and few channels per group, run by the emulator."""

from collections.abc import Iterator

import pytest
import torch

from cases import Case, channels_last
from compare import assert_within_rounding
from emulator.build import load
from emulator.direct import DIRECT_CASES, blank, correlate, expected, magnitude, operands, takes, weight_sums
from emulator.kernels import INDEX_LIMITS, MOST, SCHEDULES, by_name, reset, set_schedule

FORMATS = {"contiguous": torch.Tensor.contiguous, "channels_last": channels_last}
CASES = [case for case in DIRECT_CASES if takes(case)]


@pytest.fixture(autouse=True)
def plain_emulator() -> Iterator[None]:
    yield
    reset()


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
