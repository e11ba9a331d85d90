"""What test_amx.py runs on a library whose tile instructions are those of model.h: bfloat16 in every engine."""

from collections.abc import Callable

import pytest
import torch

import unfoldconv as uc
from cases import CASES, Case, make_case
from computations import COMPUTATIONS
from engine_cases import PATH_CASES, SHARED_CASES
from engine_checks import (
    check_batch,
    check_infinities_and_nan,
    check_small_workspaces,
    check_threads,
    check_values,
)
from instruction_sets import set_isa

each_computation = pytest.mark.parametrize("name", COMPUTATIONS)
each_shared_case = pytest.mark.parametrize("case", SHARED_CASES, ids=lambda case: case.name)

# Rows at, below and above those of one register and of two; sums of one step, of more, and of what is left of one.
TILE_CASES = [
    *(
        make_case(f"rows_{rows}", 2, in_channels=8, out_channels=rows, input_size=(5, 7), bias=True)
        for rows in (15, 16, 17, 31, 32, 33, 48, 97)
    ),
    *(
        make_case(f"channels_{channels}", 2, in_channels=channels, out_channels=33, input_size=(6, 9), bias=True)
        for channels in (30, 32, 34, 40, 63, 66, 96)
    ),
    # A row of positions that ends in the first half of a register.
    make_case("wrapped", 2, in_channels=64, out_channels=33, input_size=(5, 22), kernel_size=(3, 3)),
]  # fmt: skip


@pytest.fixture(autouse=True)
def amx() -> None:
    set_isa("amx")


def test_the_tiles_are_used() -> None:
    image, weight = torch.ones(2, 64, 16, 16), torch.ones(64, 64, 3, 3)
    for dtype, rows in ((torch.float32, 6), (torch.bfloat16, 32)):
        for report in (
            uc.explain(uc.conv2d, image.to(dtype), weight.to(dtype)),
            uc.explain(uc.conv2d, *(t.to(dtype, memory_format=torch.channels_last) for t in (image, weight))),
        ):
            assert report.ops[0].steps[0].tile == f"{rows}x64"


@each_computation
@pytest.mark.parametrize("case", [*PATH_CASES, *TILE_CASES], ids=lambda case: case.name)
def test_values_of_paths_and_tiles(case: Case, name: str) -> None:
    check_values(case, name, torch.bfloat16, ["amx"])


@each_computation
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values_in_every_situation(case: Case, name: str) -> None:
    check_values(case, name, torch.bfloat16, ["amx"])


@each_computation
@pytest.mark.parametrize("case", PATH_CASES, ids=lambda case: case.name)
def test_small_workspaces(case: Case, name: str) -> None:
    check_small_workspaces(case, name, torch.bfloat16)


@each_computation
@each_shared_case
def test_results_do_not_depend_on_the_threads(case: Case, name: str, threads: Callable[[int], None]) -> None:
    check_threads(case, name, torch.bfloat16, "amx", threads)


@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
@each_shared_case
def test_an_image_does_not_depend_on_its_batch(case: Case, name: str) -> None:
    check_batch(case, name, torch.bfloat16, "amx")


@each_computation
@each_shared_case
@pytest.mark.parametrize("operand", [0, 1], ids=["first", "second"])
def test_infinities_and_nan(case: Case, name: str, operand: int) -> None:
    check_infinities_and_nan(case, name, operand, torch.bfloat16, ["amx"])
