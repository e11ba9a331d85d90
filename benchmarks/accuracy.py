"""Is a result right? Errors against float64, and the bound on ours."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import Case, Operands
from .peers import TORCH

ERROR_FACTOR = 4.0
"""How many times torch's error ours may be. Summing in another order moves the largest error by about two."""

REFERENCE_COLUMNS_BYTES = 1 << 30
"""The float64 reference goes through the batch in slices whose columns are about this large."""


@dataclass(frozen=True)
class Error:
    """Distance of a result from the float64 one, in units of that one's root mean square.

    Attributes:
        rms: Root mean square of the differences: sees a small error everywhere.
        max: Largest difference: sees one wrong element, which the root mean square of many would hide.
    """

    rms: float
    max: float

    def within(self, bound: "Error") -> bool:
        """Whether both parts are at most those of a bound; NaN never is."""
        return self.rms <= bound.rms and self.max <= bound.max

    def __str__(self) -> str:
        return f"{self.rms:.1e} rms and {self.max:.1e} max"


def reference(case: Case, operands: Operands) -> Tensor:
    """The result in float64 (complex128) by torch's own op, slice by slice of the batch to bound the memory."""
    images_at_once = max(1, REFERENCE_COLUMNS_BYTES * case.problem.batch // max(1, _accurate_columns_bytes(case)))
    parts = []
    for start in range(0, case.problem.batch, images_at_once):
        images = slice(start, start + images_at_once)
        part = TORCH.prepare(case, operands.accurate(case.dtype.accurate, images))()
        if case.pass_ == "grad_weight" and parts:
            parts[0] += part
        else:
            parts.append(part)
    return torch.cat(parts) if case.pass_ != "grad_weight" else parts[0]


def error(result: Tensor, expected: Tensor) -> Error:
    """Error of a result against the float64 one.

    Args:
        result: In the dtype under test.
        expected: From `reference`, of the same shape.

    Returns:
        The error; infinite where shapes differ.
    """
    if result.shape != expected.shape:
        return Error(math.inf, math.inf)
    if expected.numel() == 0:
        return Error(0.0, 0.0)
    scale = _rms(expected) or 1.0
    difference = result.to(expected.dtype) - expected
    return Error(_rms(difference) / scale, float(difference.abs().max()) / scale)


def bound(case: Case, torch_error: Error, expected: Tensor) -> Error:
    """The error that ours may have.

    Args:
        case: Says the dtype.
        torch_error: The error of torch's own op.
        expected: The float64 result.

    Returns:
        `ERROR_FACTOR` times torch's error, or the error of the float64 result rounded to the dtype where torch's is
        smaller than that.
    """
    rounding = error(expected.to(case.dtype.torch), expected)
    return Error(
        ERROR_FACTOR * max(torch_error.rms, rounding.rms),
        ERROR_FACTOR * max(torch_error.max, rounding.max),
    )


def _accurate_columns_bytes(case: Case) -> int:
    return case.columns_bytes // case.dtype.torch.itemsize * case.dtype.accurate.itemsize


def _rms(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) / math.sqrt(values.numel())
