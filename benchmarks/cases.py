"""A case: one layer in one pass, dtype, memory format and device; and its operands."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .problems import Problem


@dataclass(frozen=True)
class DType:
    """A number format as the command line names it.

    Attributes:
        name: The short name.
        stored: The dtype of the operands and of the result.
        tf32: Whether torch may round the factors of float32 products on CUDA to TensorFloat-32.
    """

    name: str
    stored: torch.dtype
    tf32: bool = False

    @property
    def flop_factor(self) -> int:
        """Real multiply-adds in one multiply-add of this dtype."""
        return 4 if self.stored.is_complex else 1

    @property
    def accurate(self) -> torch.dtype:
        """The dtype in which results are checked: float64, or complex128."""
        return torch.complex128 if self.stored.is_complex else torch.float64


DTYPES = {
    d.name: d
    for d in (
        DType("bf16", torch.bfloat16),
        DType("f16", torch.float16),
        DType("tf32", torch.float32, tf32=True),
        DType("f32", torch.float32),
        DType("f64", torch.float64),
        DType("c64", torch.complex64),
        DType("c128", torch.complex128),
    )
}

FORMATS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class Case:
    """What is measured in one line of a report."""

    problem: Problem
    pass_: str
    dtype: DType
    memory_format: str
    device: torch.device

    @property
    def label(self) -> str:
        """All that tells this case from the others of a run."""
        return f"{self.problem.name} {self.dtype.name} {self.memory_format} {self.pass_}"

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of what the pass returns."""
        problem = self.problem
        return {
            "forward": problem.output_shape,
            "grad_input": problem.input_shape,
            "grad_weight": problem.weight_shape,
            "unfold": problem.columns_shape,
            "fold": problem.input_shape,
        }[self.pass_]

    @property
    def columns_bytes(self) -> int:
        """Size of the unfolded input."""
        return math.prod(self.problem.columns_shape) * self.dtype.stored.itemsize

    def refusal(self) -> str | None:
        """Why torch has no such case, or None where it has."""
        if self.memory_format == "channels_last" and self.problem.rank == 1:
            return "torch has no channels_last format for 1-D layers"
        if self.memory_format == "channels_last" and self.pass_ == "fold":
            return "columns have no memory format"
        if self.dtype.tf32 and self.device.type != "cuda":
            return "tf32 is a setting of CUDA"
        return None


@dataclass(frozen=True)
class Operands:
    """The tensors of a case. Implementations may read them, not write them.

    Attributes:
        input: (batch, in_channels, *input_size).
        weight: (out_channels, in_channels / groups, *kernel_size).
        grad_output: (batch, out_channels, *output_size).
        columns: (batch, in_channels * taps, positions); empty for the passes of a convolution.
    """

    input: Tensor
    weight: Tensor
    grad_output: Tensor
    columns: Tensor


def make_operands(case: Case) -> Operands:
    """Normal random operands, the same in every run; the weight is scaled so that outputs have variance near one."""
    problem = case.problem
    generator = torch.Generator(case.device).manual_seed(0)
    fan_in = math.prod(problem.weight_shape[1:])

    def tensor(shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
        # Drawn in 32 bits, so that dtypes of one device see the same numbers, rounded.
        drawn = torch.complex64 if case.dtype.stored.is_complex else torch.float32
        values = torch.randn(shape, dtype=drawn, device=case.device, generator=generator).mul_(scale)
        return values.to(case.dtype.stored, memory_format=_torch_format(case.memory_format, len(shape)))

    folding = case.pass_ == "fold"
    return Operands(
        input=tensor(problem.input_shape),
        weight=tensor(problem.weight_shape, 1 / math.sqrt(fan_in)),
        grad_output=tensor(problem.output_shape),
        columns=tensor(problem.columns_shape if folding else (problem.batch, 0, 0)),
    )


def _torch_format(memory_format: str, dims: int) -> torch.memory_format:
    if memory_format == "channels_last" and dims in (4, 5):
        return torch.channels_last if dims == 4 else torch.channels_last_3d
    return torch.contiguous_format


@contextmanager
def precision(case: Case) -> Iterator[None]:
    """Sets torch's float32 precision for convolutions and matrix products alike, and cuDNN's search, for a while.

    Every implementation runs under the same setting. ``allow_tf32`` sets torch's newer ``fp32_precision`` with it; the
    reverse is not so, and torch refuses to read the former where the two disagree.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    tf32 = case.dtype.tf32
    try:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = tf32, tf32, True
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before
