"""`unfoldconv.benchmark`: engines are tried once for each kind of call, and the fastest is kept."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import unfoldconv as uc
from cases import CASES_2D, Case
from compare import assert_within_rounding
from computations import COMPUTATIONS, expected_of, operands

each_case = pytest.mark.parametrize("case", CASES_2D, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    with uc.benchmark(True):
        yield
    assert not torch.ops.unfoldconv.get_tuning()


def engines(*arguments: Tensor, **window: int) -> set[str]:
    (op,) = uc.explain(uc.conv2d, *arguments, **window).ops
    return {step.family for step in op.steps}


@pytest.mark.parametrize("name", COMPUTATIONS)
@each_case
def test_results(case: Case, name: str, device: torch.device) -> None:
    """Right at the first call, where engines are tried, and at the next."""
    for dtype in (torch.float32, torch.bfloat16, torch.complex64):
        tensors = operands(name, case, dtype, device)
        exact, magnitude = expected_of(name, case, tensors)
        for what in ("tried", "known"):
            assert_within_rounding(COMPUTATIONS[name][0][-1](case, *tensors), exact, magnitude, f"{dtype}, {what}")


def test_one_engine_is_kept_and_explained() -> None:
    """Which one is a matter of time (python -m benchmarks engines); without trials all is as before."""
    x, w = torch.randn(1, 4, 64, 128), torch.randn(1, 4, 5, 5)
    with uc.benchmark(False):
        before = uc.conv2d(x, w), engines(x, w)
    uc.conv2d(x, w)
    assert len(engines(x, w)) == 1
    with uc.benchmark(False):
        assert torch.equal(uc.conv2d(x, w), before[0])
        assert engines(x, w) == before[1]


def test_explain_tries_nothing() -> None:
    x, w = torch.randn(1, 6, 20, 20), torch.randn(5, 6, 3, 3)
    (op,) = uc.explain(uc.conv2d, x, w).ops
    assert len(op.steps) == 1


def test_a_forced_engine_counts_more() -> None:
    x, w = torch.randn(1, 16, 20, 20), torch.randn(16, 16, 3, 3)
    uc.conv2d(x, w)
    torch.ops.unfoldconv.force_engine("columns")
    try:
        assert engines(x, w) == {"columns"}
    finally:
        torch.ops.unfoldconv.force_engine("automatic")


def test_nothing_is_computed_of_nothing() -> None:
    assert uc.conv2d(torch.ones(0, 3, 5, 5), torch.ones(4, 3, 3, 3)).shape == (0, 4, 3, 3)


@pytest.mark.parametrize("wrong", [1, None, "yes"])
def test_what_is_no_bool_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="enabled must be a bool, but got"):
        uc.benchmark(wrong)  # type: ignore[arg-type]
