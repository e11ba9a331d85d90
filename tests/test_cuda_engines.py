"""The tables of the engines of CUDA, on the emulator: which one is picked, why others decline, what they may take."""

import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cases import Case, make_case
from compare import assert_within_rounding
from computations import COMPUTATIONS, expected_of, operands
from emulator.build import load
from emulator.convolutions import compute, engines, forced, ops, plainly, steps, workspace_limit
from emulator.kernels import MOST

PADDED = {"kernel_size": (3, 3, 3), "padding": ((1, 1),) * 3}
CASES = {
    "dense": make_case("dense", 2, in_channels=16, out_channels=24, input_size=(9, 8), **PADDED),
    "strided": make_case("strided", 2, in_channels=9, out_channels=8, input_size=(13, 12), stride=(2, 2), **PADDED),
    "first_layer": make_case("first_layer", 2, in_channels=3, out_channels=16, input_size=(16, 24), **PADDED),
    "depthwise": make_case("depthwise", 1, in_channels=6, out_channels=6, groups=6, input_size=(20,), **PADDED),
    "grouped": make_case("grouped", 2, in_channels=8, out_channels=8, groups=2, input_size=(7, 9), **PADDED),
    "one_channel": make_case("one_channel", 2, in_channels=1, out_channels=9, input_size=(9, 8), **PADDED),
    "deep": make_case("deep", 2, batch=1, in_channels=512, out_channels=512, input_size=(7, 7), **PADDED),
    "long_window": make_case("long_window", 1, batch=1, in_channels=2, out_channels=2, kernel_size=(20000,),
                             padding=((10000, 10000),), input_size=(30,)),
}  # fmt: skip
DTYPES = (torch.float16, torch.float64, torch.int32)

each_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
each_pass = pytest.mark.parametrize("name", COMPUTATIONS)


@pytest.fixture(autouse=True)
def plain_emulator() -> Iterator[None]:
    with plainly("automatic"):
        yield


def blank(name: str, case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, None]:
    first, second = {
        "conv": (case.input_shape, case.weight_shape),
        "conv_transpose": (case.output_shape, case.weight_shape),
        "conv_weight_grad": (case.output_shape, case.input_shape),
    }[name]
    return torch.zeros(first, dtype=dtype), torch.zeros(second, dtype=dtype), None


def considered(name: str, case: Case, dtype: torch.dtype) -> list[tuple[dict[str, str], str]]:
    """Of each step what every engine that was asked has answered, and which one runs."""
    ops().begin_report(True)
    try:
        compute(name, case, *blank(name, case, dtype))
    finally:
        lines = [line.split("\t") for line in ops().end_report().splitlines()]
    found: list[tuple[dict[str, str], str]] = []
    answers: dict[str, str] = {}
    for kind, *fields in lines:
        field = dict(field.split("=", 1) for field in fields)
        if kind == "considered":
            answers[field["name"]] = field["reason"]
        elif kind == "engine":
            found.append((answers, field["name"]))
            answers = {}
    return found


def test_every_engine_is_reached() -> None:
    found = {
        engine
        for case in CASES.values()
        for dtype in DTYPES
        for name in COMPUTATIONS
        for engine in engines(name, case, *blank(name, case, dtype))
    }
    assert found == set(ops().engines(True).split())


@each_case
@each_pass
def test_every_engine_says_why_it_declines(name: str, case: Case) -> None:
    for dtype in DTYPES:
        for answers, engine in considered(name, case, dtype):
            assert engine == next(row for row, reason in answers.items() if not reason), "the first one that takes it"
            assert all(not reason or len(reason.split()) > 3 for reason in answers.values()), answers


@each_pass
def test_an_engine_or_a_family_can_be_forced(name: str) -> None:
    for case in CASES.values():
        for row in ops().engines(True).split():
            for choice in {row, row.partition(".")[0]}:
                with forced(choice):
                    found = set(engines(name, case, *blank(name, case, torch.float32)))
                assert found <= {row, "columns"}


def test_phases_are_no_first_layer() -> None:
    """Though their correlations have few channels, and here each has a single output."""
    case = make_case("few_channels", 2, in_channels=16, out_channels=3, input_size=(16, 24), **PADDED)
    with forced("stem"):
        for answers, engine in considered("conv_transpose", case, torch.float32):
            assert engine == "columns"
            assert "phases" in answers["stem"]


@each_case
@each_pass
def test_no_engine_depends_on_the_batch(name: str, case: Case) -> None:
    if name == "conv_weight_grad":
        return  # its sums are over the batch
    for dtype in DTYPES:
        few, many = (
            engines(name, sized, *blank(name, sized, dtype))
            for sized in (dataclasses.replace(case, batch=batch) for batch in (1, 40))
        )
        assert few == many


@each_case
@each_pass
def test_what_engines_take_stays_within_the_limit(name: str, case: Case) -> None:
    # However small the limit, a row of weights is packed at a time, in pieces of four channels.
    row_of_weights = 16 * math.prod(case.kernel_size) * math.ceil(max(case.in_channels, case.out_channels) / 4)
    for limit in (1 << 14, 1 << 20, 32 << 20):
        with workspace_limit(limit):
            for step in steps(name, case, *blank(name, case, torch.float32)):
                if step["name"] != "columns":  # whose packed weight is beside it
                    taken = int(step["thread_bytes"]) + int(step["shared_bytes"])
                    assert taken <= max(limit, row_of_weights), step


def test_phases_are_asked_for_alone_where_one_of_them_is_beyond_32_bits() -> None:
    """Outputs that share their columns, as those of a phase with one tap do here, are then not computed by an engine
    that would compute the first of them."""
    case = make_case("gaps", 1, in_channels=12, out_channels=12, kernel_size=(5,), stride=(4,), input_size=(41,))
    first, second, bias = operands("conv_transpose", case, torch.float32, "cpu")
    exact, magnitude = expected_of("conv_transpose", case, (first, second, bias))

    def picked(index: int) -> list[str]:
        load().set_limits(index=index, blocks=MOST)
        return engines("conv_transpose", case, first, second, bias)

    enough = next(index for index in range(1024, 2048) if picked(index) == ["implicit_gemm"])
    for index, expected in ((enough, ["implicit_gemm"]), (enough - 1, ["columns"] * 2)):
        assert picked(index) == expected
        assert_within_rounding(compute("conv_transpose", case, first, second, bias), exact, magnitude, f"{expected}")
