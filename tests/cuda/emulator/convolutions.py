"""The three convolutions as CUDA computes them, on the emulator, as functions of tensors of the CPU.

Operands and results lie in guarded memory, so one element too far is an error in every test.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cases import Case

from .build import load, namespace
from .kernels import dtype_code, guarded, reset, untouched

RESULT_SHAPES = {
    "conv": lambda case: case.output_shape,
    "conv_transpose": lambda case: case.input_shape,
    "conv_weight_grad": lambda case: case.weight_shape,
}
_FUNCTIONS = {"conv": "conv", "conv_transpose": "conv_input_grad", "conv_weight_grad": "conv_weight_grad"}


def compute(
    name: str,
    case: Case,
    first: Tensor,
    second: Tensor,
    bias: Tensor | None,
    *,
    to_format: Any = Tensor.contiguous,
    guard_end: bool = True,
    emulated: Any = None,
) -> Tensor:
    """A computation of tests/support/computations.py; `to_format` arranges its result."""
    emulated = emulated or load()
    result = guarded(to_format(untouched(RESULT_SHAPES[name](case), first.dtype)), emulated, guard_end)
    tensors = [None if tensor is None else guarded(tensor, emulated, guard_end) for tensor in (first, second, bias)]
    views = [None if tensor is None else view(emulated, tensor) for tensor in tensors]
    operands = views[:2] if name == "conv_weight_grad" else views
    getattr(emulated, _FUNCTIONS[name])(*operands, case.op_window, case.groups, view(emulated, result))
    return result.clone()


def view(emulated: Any, tensor: Tensor) -> tuple[int, list[int], list[int], Any]:
    """As the functions of convolutions.cpp take a tensor."""
    return tensor.data_ptr(), list(tensor.shape), list(tensor.stride()), dtype_code(emulated, tensor.dtype)


def multiply_integers(left: Tensor, right: Tensor, *, guard_end: bool = True, emulated: Any = None) -> Tensor:
    """The products [batch, rows, cols] of [batch, rows, depth] and [batch, depth, cols]."""
    emulated = emulated or load()
    shape = (left.shape[0], left.shape[1], right.shape[2])
    tensors = [guarded(tensor, emulated, guard_end) for tensor in (left, right, untouched(shape, left.dtype))]
    emulated.multiply_integers(*(view(emulated, tensor) for tensor in tensors))
    return tensors[-1].clone()


def ops(name: str = "emulated") -> Any:
    """The ops of csrc/dispatch/choice.cpp and csrc/runtime/report.cpp for a build of the emulator."""
    load()
    return getattr(torch.ops, namespace(name))


@contextmanager
def forced(engine: str, name: str = "emulated") -> Iterator[None]:
    ops(name).force_engine(engine)
    try:
        yield
    finally:
        ops(name).force_engine("automatic")


@contextmanager
def workspace_limit(bytes: int) -> Iterator[None]:
    load().set_workspace_limit(bytes)
    try:
        yield
    finally:
        load().set_workspace_limit(32 << 20)


def steps(
    name: str, case: Case, first: Tensor, second: Tensor, bias: Tensor | None, **options: Any
) -> list[dict[str, str]]:
    """What the engines that the computation would use say of themselves, in order."""
    ops().begin_report(False)
    try:
        compute(name, case, first, second, bias, **options)
    finally:
        report = ops().end_report()
    lines = (line.split("\t") for line in report.splitlines())
    return [dict(field.split("=", 1) for field in fields) for kind, *fields in lines if kind == "engine"]


def engines(name: str, case: Case, first: Tensor, second: Tensor, bias: Tensor | None, **options: Any) -> list[str]:
    """The names of the engines that the computation would use, in order."""
    return [step["name"] for step in steps(name, case, first, second, bias, **options)]


@contextmanager
def plainly(engine: str) -> Iterator[None]:
    """One engine, strict float32, and what a test changes of the emulator is as before."""
    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, "ieee"
    with forced(engine):
        yield
    conv.fp32_precision = before
    reset()
