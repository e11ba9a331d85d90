"""Is a result right? Errors against float64, and the bound on ours.

torch computes grouped float64 convolutions group by group, in minutes for the largest layers. So of a layer with many
groups a few whole groups are compared with float64, and all of the result with torch's in the dtype under test.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import Case, Operands
from .peers import TORCH
from .problems import CONVOLUTION_PASSES

ERROR_FACTOR = 8.0
"""How many times torch's error ours may be. Sums of the same terms in other sound orders differ by nearly as much in
float32: folding adds the taps of one channel one by one where a direct convolution adds them in a tree."""

MAX_OVER_RMS = 6.0
"""The largest of a million normal errors is five times their root mean square."""

SAMPLED_GROUPS = 8
REFERENCE_COLUMNS_BYTES = 1 << 30
"""The float64 reference goes through the batch in slices whose columns are about this large."""


@dataclass(frozen=True)
class Error:
    """Distance of a result from the expected one, in units of that one's root mean square.

    Attributes:
        rms: Root mean square of the differences: sees a small error everywhere.
        max: Largest difference: sees one wrong element, which the root mean square of many would hide.
    """

    rms: float
    max: float

    def within(self, bound: "Error") -> bool:
        """Whether both parts are at most those of a bound; NaN never is."""
        return self.rms <= bound.rms and self.max <= bound.max

    def times(self, factor: float) -> "Error":
        """Both parts times a factor."""
        return Error(self.rms * factor, self.max * factor)

    def __str__(self) -> str:
        return f"{self.rms:.1e} rms and {self.max:.1e} max"


def error(result: Tensor, expected: Tensor) -> Error:
    """Error of a result against the expected one.

    Args:
        result: In the dtype under test.
        expected: Of the same shape, in any dtype.

    Returns:
        The error, computed in the wider of the two dtypes; infinite where shapes differ.
    """
    if result.shape != expected.shape:
        return Error(math.inf, math.inf)
    if expected.numel() == 0:
        return Error(0.0, 0.0)
    scale = _rms(expected) or 1.0
    difference = result - expected
    return Error(_rms(difference) / scale, float(difference.abs().max()) / scale)


class Reference:
    """The float64 (complex128) result of torch's own op, for all groups of a case or a sample of them.

    Args:
        case: The case.
        operands: Its operands.

    Raises:
        RuntimeError: torch cannot compute it.
    """

    def __init__(self, case: Case, operands: Operands) -> None:
        self._case = case
        self._groups: Tensor | None = None  # indices of the sampled groups; None means all
        if case.pass_ in CONVOLUTION_PASSES and case.problem.groups > SAMPLED_GROUPS:
            self._groups = torch.linspace(0, case.problem.groups - 1, SAMPLED_GROUPS, device=case.device).long()
        self._expected = self._compute(operands)

    def error(self, result: Tensor) -> Error:
        """Error of a result in the dtype under test, in the sampled groups."""
        if result.shape != self._case.result_shape:
            return Error(math.inf, math.inf)
        return error(self._sample(result, 0 if self._case.pass_ == "grad_weight" else 1), self._expected)

    def bound(self, torch_error: Error) -> Error:
        """The error that ours may have.

        Args:
            torch_error: The error of torch's own op.

        Returns:
            `ERROR_FACTOR` times torch's error, or times that of the float64 result rounded to the dtype, if larger.
            Both are zero where the dtype is that of the reference; there, in place of the latter, what rounding every
            partial sum makes of terms with random signs: sqrt(terms) units of roundoff.
        """
        dtype = self._case.dtype
        rounding = error(self._expected.to(dtype.stored), self._expected)
        if dtype.stored == dtype.accurate:
            terms = self._case.problem.work(self._case.pass_).flop / max(1, math.prod(self._case.result_shape))
            roundoff = torch.finfo(dtype.stored).eps / 2 * math.sqrt(terms)
            rounding = Error(roundoff, MAX_OVER_RMS * roundoff)
        return Error(max(torch_error.rms, rounding.rms), max(torch_error.max, rounding.max)).times(ERROR_FACTOR)

    def _compute(self, operands: Operands) -> Tensor:
        case = self._sampled_case()
        batch = case.problem.batch
        columns_bytes = math.prod(case.problem.columns_shape) * case.dtype.accurate.itemsize
        images_at_once = max(1, REFERENCE_COLUMNS_BYTES * batch // max(1, columns_bytes))
        parts: list[Tensor] = []
        for start in range(0, batch, images_at_once):
            part = TORCH.prepare(case, self._accurate(operands, slice(start, start + images_at_once)))()
            if case.pass_ == "grad_weight" and parts:
                parts[0] += part
            else:
                parts.append(part)
        return parts[0] if case.pass_ == "grad_weight" else torch.cat(parts)

    def _sampled_case(self) -> Case:
        if self._groups is None:
            return self._case
        problem = self._case.problem
        sampled = dataclasses.replace(
            problem,
            groups=SAMPLED_GROUPS,
            in_channels=problem.in_channels // problem.groups * SAMPLED_GROUPS,
            out_channels=problem.out_channels // problem.groups * SAMPLED_GROUPS,
        )
        return dataclasses.replace(self._case, problem=sampled)

    def _accurate(self, operands: Operands, images: slice) -> Operands:
        def accurate(values: Tensor, group_axis: int) -> Tensor:
            sampled = self._sample(values, group_axis)
            return sampled.to(self._case.dtype.accurate, memory_format=torch.contiguous_format)

        return Operands(
            input=accurate(operands.input[images], 1),
            weight=accurate(operands.weight, 0),
            grad_output=accurate(operands.grad_output[images], 1),
            columns=accurate(operands.columns[images], 1),
        )

    def _sample(self, values: Tensor, group_axis: int) -> Tensor:
        """The channels of the sampled groups, along the axis that holds the channels group by group."""
        if self._groups is None:
            return values
        groups: Tensor = values.unflatten(group_axis, (self._case.problem.groups, -1))
        return groups.index_select(group_axis, self._groups).flatten(group_axis, group_axis + 1)


def _rms(values: Tensor) -> float:
    # vector_norm accumulates in the dtype of its input: in 16 bits that would overflow.
    accumulated = values.dtype if values.dtype.itemsize >= 8 else torch.float64
    return float(torch.linalg.vector_norm(values, dtype=accumulated)) / math.sqrt(values.numel())
