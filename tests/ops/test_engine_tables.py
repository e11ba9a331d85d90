"""The tables of engines: which one is picked where, why the others decline, and that none is there for nothing."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import unfoldconv as uc
from benchmarks.problems import Problem, load_problems
from cases import Case, channels_last
from computations import COMPUTATIONS, operands
from engine_cases import ENGINE_CASES, LAYERS, SHARED_CASES
from engine_checks import op

ROWS = torch.ops.unfoldconv.engines(False).split()
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
FORMATS = (Tensor.contiguous, channels_last)

# Rows that are picked for no layer of the suite, and what they are there for.
NEVER_PICKED = {
    "columns": "integers, complex numbers, empty reductions and windows beyond 2^40: no layer of a network",
}


def explained(function: Any, *arguments: Any, considered: bool = False) -> tuple[Any, ...]:
    """The steps of a call of an op; none where there is nothing to compute."""
    return tuple(step for found in uc.explain(function, *arguments, considered=considered).ops for step in found.steps)


def arranged(name: str, case: Case, dtype: torch.dtype) -> Iterator[list[Tensor | None]]:
    """The operands of a case, contiguous and channels_last in all four pairs."""
    first, second, bias = operands(name, case, dtype, "cpu")
    assert first is not None
    assert second is not None
    for one, other in itertools.product(FORMATS, repeat=2):
        yield [one(first), other(second), bias]


def picks(cases: Iterable[Case], dtypes: Iterable[torch.dtype]) -> set[str]:
    return {
        step.engine
        for case, dtype, name in itertools.product(cases, dtypes, COMPUTATIONS)
        for tensors in arranged(name, case, dtype)
        for step in explained(op(name), case, *tensors)
    }


def test_every_engine_is_reached_by_the_cases_of_the_tests() -> None:
    assert picks([*ENGINE_CASES, *SHARED_CASES, *LAYERS], (torch.float32, torch.int32)) == set(ROWS)


CHANNELS_LAST = {1: [], 2: [torch.channels_last], 3: [torch.channels_last_3d]}


def layer_calls(problem: Problem) -> Iterator[tuple[Any, ...]]:
    """The three passes of a layer, on memory that nobody has touched: a look at them takes no more."""
    padding = list(problem.padding)
    window = (list(problem.stride), padding, padding, list(problem.dilation))
    formats = [torch.contiguous_format, *CHANNELS_LAST[problem.rank]]
    ops = torch.ops.unfoldconv
    for dtype, memory_format in itertools.product(DTYPES, formats):
        x, w, g = (
            torch.empty(shape, dtype=dtype, memory_format=memory_format)
            for shape in (problem.input_shape, problem.weight_shape, problem.output_shape)
        )
        yield ops.conv, x, w, None, *window, problem.groups
        yield ops.conv_input_grad, g, w, None, list(problem.input_shape[2:]), *window, problem.groups
        yield ops.conv_weight_grad, g, x, list(problem.kernel_size), *window, problem.groups


def test_every_engine_is_picked_for_a_layer_of_the_suite() -> None:
    found = {step.engine for problem in load_problems() for call in layer_calls(problem) for step in explained(*call)}
    assert found.isdisjoint(NEVER_PICKED)
    assert found | set(NEVER_PICKED) == set(ROWS)


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_every_engine_says_why_it_declines(case: Case) -> None:
    for name in COMPUTATIONS:
        for tensors in arranged(name, case, torch.float32):
            for step in explained(op(name), case, *tensors, considered=True):
                reasons = {row.engine: row.reason for row in step.considered}
                willing = [row.engine for row in step.considered if row.reason is None]
                assert willing[0] == step.engine, "the first one that takes it runs"
                assert all(reason is None or len(reason.split()) > 3 for reason in reasons.values()), reasons


def test_the_reasons_are_shown() -> None:
    x, w = torch.ones(1, 3, 20, 20), torch.ones(8, 3, 3, 3)
    text = str(uc.explain(uc.conv2d, x, w, considered=True))
    runs, *others = [line.strip() for line in text.splitlines() if line.endswith(": runs")]
    assert not others
    assert runs.removesuffix(": runs") in text.splitlines()[1]
    assert "    columns: would take it too" in text.splitlines()
    assert "considered" not in str(uc.explain(uc.conv2d, x, w))
    assert uc.explain(uc.conv2d, x, w).ops[0].steps[0].considered == ()


@pytest.mark.parametrize("row", ROWS)
def test_a_row_can_be_forced(row: str) -> None:
    """It runs wherever it would be willing, and what declines falls through to the columns."""
    case = next(case for case in LAYERS if case.name == "dense-2d")
    torch.ops.unfoldconv.force_engine(row)
    try:
        for name in COMPUTATIONS:
            for tensors in arranged(name, case, torch.float32):
                (step,) = explained(op(name), case, *tensors, considered=True)
                assert step.engine in (row, "columns")
                declined = {other.reason for other in step.considered if other.engine not in (row, "columns")}
                assert declined <= {"another engine is forced"}
    finally:
        torch.ops.unfoldconv.force_engine("automatic")


# Engines that share their cuts and blocks, so that a sum has the same bits by either: the batch may choose.
EQUAL_BITS = ({"positions.few", "channels.patches", "positions.gathered"},)


@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_no_pick_depends_on_the_batch_or_on_threads(name: str, threads: Any) -> None:
    """But between engines of equal bits, which tests of values show (test_batches_do_not_matter in test_engines.py)."""
    for case, dtype in itertools.product([*LAYERS, *SHARED_CASES], DTYPES):
        for first, *others in arranged(name, case, dtype):
            assert first is not None
            found = []
            for batch, count in ((1, 1), (1, 2), (7, 1), (7, 3)):
                threads(count)
                sized = first.new_empty_strided((batch, *first.shape[1:]), first.stride())
                found.append([step.engine for step in explained(op(name), case, sized, *others)])
            for other in found[1:]:
                for one, two in zip(found[0], other, strict=True):
                    assert one == two or any({one, two} <= equal for equal in EQUAL_BITS), (case.name, dtype, one, two)
