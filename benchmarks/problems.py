"""The layers that are measured, and what each one costs in FLOPs, bytes and columns.

A layer is one row of ``problems.json``. Every count in the reports comes from `Problem`; no other file has a formula
for FLOPs or bytes.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

LAYERS_FILE = Path(__file__).with_name("problems.json")

CONVOLUTION_PASSES = ("forward", "grad_input", "grad_weight")
COLUMN_PASSES = ("unfold", "fold")


@dataclass(frozen=True)
class Work:
    """What one pass over a layer has to do, whatever the algorithm.

    Attributes:
        flop: The customary count, which includes the taps that fall into the padding. Rates are given in it.
        valid_flop: Without those taps: what has to be computed. The floor is based on it.
        elements: Elements read plus elements written, each operand and the result once; input elements that no patch
            covers are not read, and cells of columns that lie in the padding are not read by ``fold``.
    """

    flop: int
    valid_flop: int
    elements: int


@dataclass(frozen=True)
class Problem:
    """One convolution layer. Tuples have one entry per spatial axis, outermost first.

    Shapes: input (batch, in_channels, *input_size), weight (out_channels, in_channels / groups, *kernel_size),
    output and its gradient (batch, out_channels, *output_size).
    """

    name: str
    family: str
    batch: int
    in_channels: int
    out_channels: int
    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel_size)

    @property
    def output_size(self) -> tuple[int, ...]:
        """Positions of the kernel along each axis."""
        return tuple(
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in self._axes()
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(batch, in_channels, *input_size)."""
        return (self.batch, self.in_channels, *self.input_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(out_channels, in_channels / groups, *kernel_size)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(batch, out_channels, *output_size)."""
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def columns_shape(self) -> tuple[int, int, int]:
        """(batch, in_channels * taps, positions): what unfolding the whole input makes."""
        return (self.batch, self.in_channels * math.prod(self.kernel_size), math.prod(self.output_size))

    def work(self, pass_: str) -> Work:
        """FLOPs and elements of one pass.

        The three passes of a convolution multiply and add once per (image, output channel, position, input channel
        of the group, tap). ``fold`` adds once per cell of the columns; ``unfold`` computes nothing.

        Args:
            pass_: One of `CONVOLUTION_PASSES` or `COLUMN_PASSES`.

        Returns:
            The counts; a complex multiplication is not four here but in `benchmarks.cases.DType.flop_factor`.
        """
        inside, covered = self._coverage
        input_, weight, output = (math.prod(s) for s in (self.input_shape, self.weight_shape, self.output_shape))
        covered_input = self.batch * self.in_channels * covered
        columns = math.prod(self.columns_shape)
        valid_columns = self.batch * self.in_channels * inside
        if pass_ == "unfold":
            return Work(0, 0, covered_input + columns)
        if pass_ == "fold":
            return Work(columns, valid_columns, valid_columns + input_)
        flop_per_cell = 2 * self.out_channels // self.groups  # a cell of the columns meets each filter of its group
        elements = {
            "forward": covered_input + weight + output,
            "grad_input": output + weight + input_,
            "grad_weight": covered_input + output + weight,
        }[pass_]
        return Work(flop_per_cell * columns, flop_per_cell * valid_columns, elements)

    def _axes(self) -> Iterator[tuple[int, int, int, int, int]]:
        return zip(self.input_size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)

    @cached_property
    def _coverage(self) -> tuple[int, int]:
        """(pairs of position and tap that lie inside the input, input elements that some pair reads), per plane."""
        inside = covered = 1
        for (size, kernel, stride, padding, dilation), positions in zip(self._axes(), self.output_size, strict=True):
            read = [
                coordinate
                for tap in range(kernel)
                for position in range(positions)
                if 0 <= (coordinate := position * stride - padding + tap * dilation) < size
            ]
            inside *= len(read)
            covered *= len(set(read))
        return inside, covered


def load_problems(path: Path = LAYERS_FILE, device_type: str = "cpu") -> list[Problem]:
    """Reads layers from a file in the format of ``problems.json``.

    Args:
        path: A JSON object whose ``layers`` is a list of rows.
        device_type: ``"cpu"`` takes batch and input size from a row's ``cpu`` entry, everything else from the row.

    Returns:
        The layers in the order of the file.

    Raises:
        ValueError: A row lacks a key, or its lists differ in length.
    """
    return [_problem(row, device_type) for row in json.loads(path.read_text())["layers"]]


def _problem(row: dict[str, Any], device_type: str) -> Problem:
    sizes = {**row, **row["cpu"]} if device_type == "cpu" and "cpu" in row else row
    try:
        problem = Problem(
            name=row["name"],
            family=row["family"],
            batch=sizes["N"],
            in_channels=row["C_in"],
            out_channels=row["C_out"],
            input_size=tuple(sizes["input"]),
            kernel_size=tuple(row["kernel"]),
            stride=tuple(row["stride"]),
            padding=tuple(row["padding"]),
            dilation=tuple(row["dilation"]),
            groups=row["groups"],
        )
    except KeyError as error:
        raise ValueError(f"a layer must have the key {error}, but got {sorted(row)}") from None
    lengths = {len(t) for t in (problem.input_size, problem.stride, problem.padding, problem.dilation)}
    if lengths != {problem.rank}:
        raise ValueError(f"lists of layer {problem.name} must have {problem.rank} entries, but got {row}")
    return problem
