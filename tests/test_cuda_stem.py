"""The CUDA kernels for few channels and one group, run by the emulator, against the reference in plain PyTorch."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import CASES, Case, channels_last, make_case
from compare import assert_within_rounding
from computations import expected_of, operands
from emulator.build import load
from emulator.convolutions import compute, engines, forced
from emulator.kernels import CROPPED_CASES, MOST, WARP_SCHEDULES, reset, set_schedule

ENGINE = "stem"
ARRANGEMENTS: tuple[Callable[[Tensor], Tensor], ...] = (Tensor.contiguous, channels_last)


@pytest.fixture(autouse=True)
def plain_emulator() -> Iterator[None]:
    """Strict float32, and what a test changes is as before."""
    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, "ieee"
    with forced(ENGINE):
        yield
    conv.fp32_precision = before
    reset()


def stem(name: str, rank: int, in_channels: int = 3, out_channels: int = 16, **changes: Any) -> Case:
    return make_case(
        name, rank, in_channels=in_channels, out_channels=out_channels, **{"bias": True, "groups": 1} | changes
    )


# Tiles are of up to 128 positions and 64 rows (32 in double), steps of 16, 8 or 4 terms.
STEMS = [
    # First layers of networks, on small images.
    stem("seven_by_two", 2, out_channels=64, kernel_size=(7, 7), stride=(2, 2), padding=((3, 3),) * 2, input_size=(30, 48)),
    stem("patches_of_four", 2, out_channels=96, kernel_size=(4, 4), stride=(4, 4), input_size=(32, 40)),
    stem("three_by_two", 2, out_channels=32, kernel_size=(3, 3), stride=(2, 2), padding=((1, 1),) * 2, input_size=(16, 23)),
    stem("speech", 1, 1, 24, kernel_size=(10,), stride=(5,), input_size=(700,)),
    stem("volume", 3, 3, 8, kernel_size=(2, 4, 4), stride=(2, 4, 4), input_size=(4, 12, 16)),
    # Chunks of terms: whole ones and a last one with fewer.
    stem("patches_of_sixteen", 2, out_channels=40, kernel_size=(16, 16), stride=(16, 16), input_size=(48, 64)),
    stem("thirty_one", 2, 2, 9, kernel_size=(31, 31), padding=((15, 15),) * 2, input_size=(17, 20)),
    stem("long_window", 1, 1, 17, kernel_size=(3001,), padding=((1500, 1500),), input_size=(150,)),
]


def takes(case: Case) -> bool:
    return case.groups == 1 and case.in_channels <= 4


FEW = [case for case in [*CASES, *CROPPED_CASES] if takes(case)]
SITUATIONS = [*(dataclasses.replace(case, bias=True) for case in FEW), *STEMS]


def by_name(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def check(name: str, case: Case, dtype: torch.dtype, **options: Any) -> None:
    """Both memory formats of the operands and the result, in orders of threads that differ."""
    tensors = operands(name, case, dtype, "cpu")
    exact, magnitude = expected_of(name, case, tensors)
    pairs = itertools.product(ARRANGEMENTS, repeat=2)
    for (first, second), order in zip(pairs, WARP_SCHEDULES, strict=True):
        set_schedule(options.get("emulated") or load(), *order)
        arranged = first(tensors[0]), (second if name == "conv_weight_grad" else Tensor.contiguous)(tensors[1])
        to_format = Tensor.contiguous if name == "conv_weight_grad" else second
        if case.batch > 0 and "emulated" not in options:
            assert engines(name, case, *arranged, tensors[2], to_format=to_format) == [ENGINE]
        actual = compute(name, case, *arranged, tensors[2], to_format=to_format, **options)
        assert_within_rounding(actual, exact, magnitude, f"{dtype}, {first.__name__} to {second.__name__}")


@by_name(SITUATIONS)
def test_float16(case: Case) -> None:
    check("conv", case, torch.float16)
