"""Faults planted in copies of the direct kernels are found by the emulator."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import Case, channels_last
from compare import assert_within_rounding
from emulator.build import load
from emulator.direct import DIRECT_CASES, blank, correlate, expected, magnitude, operands, weight_sums
from emulator.faults import BARRIER, GUARD, NO_BARRIER, VALUES, Fault, check_found, ignored, plain

NAMED = {case.name: case for case in DIRECT_CASES}
WRONG = f"{VALUES}|elements are wrong"
# One dtype is enough, and compiles faster.
ONE_DTYPE = (
    """    case ScalarType::Half: return f(Type<Half>{});
    case ScalarType::BFloat16: return f(Type<BFloat16>{});
    case ScalarType::Float: return f(Type<float>{});
    case ScalarType::Double: return f(Type<double>{});
    default: refuse(std::string("dtype must be a floating""",
    """    case ScalarType::Float: return f(Type<float>{});
    default: refuse(std::string("dtype must be a floating""",
)


@functools.cache
def exact_of(case: Case, infinite: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    tensors = operands(case, torch.float32)
    if infinite:
        tensors["x"].abs_()
        tensors["x"][..., 8:, :] = tensors["x"][..., 12:] = torch.inf
    return tensors, expected(case, tensors), magnitude(case, tensors)


def check_correlate(emulated: Any, to_format: Callable[[Tensor], Tensor], *names: str) -> None:
    for name, backward in itertools.product(names, (False, True)):
        tensors, exact, bound = exact_of(NAMED[name], False)
        source, target = ("y", "x") if backward else ("x", "y")
        key = "input_grad" if backward else "conv"
        actual, _ = correlate(
            NAMED[name],
            to_format(tensors[source]),
            tensors["w"],
            tensors[f"{target}_bias"],
            blank(tensors[target], to_format),
            backward=backward,
            guard_end=to_format is not padded,  # which would not be aligned
            emulated=emulated,
        )
        assert_within_rounding(actual, exact[key], bound[key], key)


def check_sums(emulated: Any, to_format: Callable[[Tensor], Tensor], name: str, *, infinite: bool = False) -> None:
    """With infinite elements that no window reads."""
    tensors, exact, bound = exact_of(NAMED[name], infinite)
    actual, _ = weight_sums(NAMED[name], to_format(tensors["y"]), to_format(tensors["x"]), emulated=emulated)
    assert_within_rounding(actual, exact["weight_grad"], bound["weight_grad"], "weight_grad")


def padded(tensor: Tensor) -> Tensor:
    """Rows that are one element apart."""
    return torch.nn.functional.pad(tensor, (0, 1), value=9)[..., :-1]


def correlating(*names: str) -> Callable[[Any, Any], None]:
    return lambda emulated, to_format: check_correlate(emulated, to_format, *names)


def summing(name: str, *, infinite: bool = False) -> Callable[[Any, Any], None]:
    return lambda emulated, to_format: check_sums(emulated, to_format, name, infinite=infinite)


def barrier(name: str, file: str, where: str, check: Callable[[Any, Any], None], to_format: Any) -> Fault:
    """A barrier left out, told from the others by the text about it."""
    return Fault(name, file, where, where.replace(BARRIER, NO_BARRIER), check, to_format, WRONG)


CORRELATE, SUMS, BOX = "depthwise_correlate.cuh", "depthwise_weight_grad.cuh", "depthwise_box.cuh"
FAULTS = [
    barrier("phases", CORRELATE, f"at[8]);\n    {BARRIER}", correlating("three-2d"), plain),
    barrier("table", CORRELATE, f"{BARRIER}  // the table is there", correlating("three-2d"), plain),
    barrier("image", CORRELATE, f"{BARRIER}\n      if (!has_strip", correlating("three-2d"), channels_last),
    barrier("results", CORRELATE, f"{BARRIER}  // the results take", correlating("three-2d"), plain),
    barrier("store", CORRELATE, f"(work.result);\n    {BARRIER}", correlating("three-2d"), plain),
    barrier("sum_image", SUMS, f"{BARRIER}\n      if (!busy)", summing("three-2d"), channels_last),
    barrier("sums", SUMS, f"{BARRIER}  // the sums take", summing("three-2d"), plain),
    barrier("splits", "split_sums.cuh", f"[lane] = sum;\n    {BARRIER}", summing("three-2d"), plain),
    Fault(
        "bounds",
        BOX,
        *ignored("static_cast<Unsigned>(index) < static_cast<Unsigned>(size)"),
        correlating("three-2d"),
        plain,
        f"{GUARD}|{WRONG}",
    ),
    Fault(
        "odd_pairs",
        BOX,
        "size[fast] % 2 == 0;",
        "(size[fast] % 2 == 0 || {fault});",
        correlating("three-2d"),
        padded,
        f"{GUARD}|{WRONG}|aligned",
    ),
    Fault(
        "whole_pairs",
        BOX,
        "n.inside[0] && n.inside[1];",
        "n.inside[0] && (n.inside[1] || {fault});",
        correlating("odd_tiles-2d"),
        plain,
        WRONG,
    ),
    Fault(
        "edge_of_the_tile",
        "depthwise_correlate.cu",
        ".advance + most_taps[axis],",
        ".advance + most_taps[axis] - {fault},",
        correlating("three-2d"),
        plain,
        f"{GUARD}|{WRONG}",
    ),
    Fault(
        "rows",
        SUMS,
        "if (v < rows)  //",
        "if (v < rows || {fault})  //",
        summing("three_cropped-2d", infinite=True),
        plain,
        WRONG,
    ),
    Fault(
        "columns",
        SUMS,
        "x >= count[2]",
        "(x >= count[2] && !{fault})",
        summing("three_cropped-2d", infinite=True),
        plain,
        WRONG,
    ),
]


def load_with_faults() -> Any:
    edits: dict[str, list[tuple[str, str]]] = {
        "float_kernels.h": [ONE_DTYPE],
        "depthwise_correlate.cu": [],
        "depthwise_weight_grad.cu": [],
    }
    for fault in FAULTS:
        edits.setdefault(fault.file, []).append(fault.edit)
    return load(edits, "depthwise_faults")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}-{fault.name}")
def test_a_planted_fault_is_found(fault: Fault) -> None:
    check_found(load_with_faults(), fault)
