"""The ops below autograd, in the cheapest way that nobody can tell from the public op.

Most of what a small call costs is the conversion of lists of numbers to those of the dispatcher. So where nobody looks
on, the private twins of `csrc/binding/packed.cpp` are called, which take the numbers per axis packed into one integer.
The public ops, which mean the same, are called wherever somebody might see the difference (subclasses of Tensor,
dispatch modes, tracing, profiling) and for numbers that do not fit.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from . import _ops
from ._binding import NAMESPACE

R = TypeVar("R")

_namespace = getattr(torch.ops, NAMESPACE)


def _packed_op(name: str) -> Callable[..., Any]:
    """The op without the Python around it, where torch has it by this name."""
    overload = getattr(_namespace, f"_{name}_packed").default
    return getattr(overload, "_op", overload)  # type: ignore[no-any-return]


_conv_packed: Callable[..., Tensor] = _packed_op("conv")
_conv_input_grad_packed: Callable[..., Tensor] = _packed_op("conv_input_grad")
_conv_weight_grad_packed: Callable[..., Tensor] = _packed_op("conv_weight_grad")
_conv_backward_packed: Callable[..., tuple[Tensor, Tensor]] = _packed_op("conv_backward")

# A guard around the call would cost a microsecond. So the packed ops record no gradient, and refuse grad mode.
_library = torch.library.Library(NAMESPACE, "IMPL")
for _name in ("conv", "conv_input_grad", "conv_weight_grad", "conv_backward"):
    _library.impl(f"_{_name}_packed", torch.library.fallthrough_kernel, "Autograd")

_below_autograd: Callable[[], Any] = torch._C._AutoDispatchBelowAutograd
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_function_modes: Callable[[], int] = torch._C._len_torch_function_stack
_profiling: Callable[[], bool] = torch._C._autograd._profiler_enabled
_tracing: Callable[[], Any] = torch._C._get_tracing_state
_grad_enabled: Callable[[], bool] = torch.is_grad_enabled
_set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled
_includes_key: Callable[[Any], bool] = torch._C._dispatch_tls_is_dispatch_key_included
_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch

_PACKED_BITS = 60
"""Shared evenly by the numbers, as in csrc/binding/packed.cpp."""

_PLAIN = frozenset((Tensor, torch.nn.Parameter))


def _announce_shardings(operands: tuple[Any, ...]) -> None:
    """Tells torch how the ops act on DTensors once there can be one; before, the import would take a second.

    Dynamo runs an import while it traces.
    """
    for operand in operands:
        if isinstance(operand, Tensor) and type(operand) not in _PLAIN and "torch.distributed.tensor" in sys.modules:
            from . import _sharding  # noqa: F401


def call(op: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The public op without its Autograd kernel. Dynamo does not trace the guard: its graph holds the op itself."""
    _announce_shardings(arguments[:2])
    if is_dynamo_compiling():
        return op(*arguments)
    with _below_autograd():
        return op(*arguments)


def _pack(per_axis: tuple[Any, ...]) -> int | None:
    """The numbers of several tuples in one, the first in the lowest bits; None if one of them does not fit."""
    numbers = [number for numbers in per_axis for number in numbers]
    bits = _PACKED_BITS // len(numbers)
    packed = 0
    for number in reversed(numbers):
        if type(number) is not int or not 0 <= number < 1 << bits:
            return None
        packed = packed << bits | number
    return packed


@functools.lru_cache(maxsize=4096)
def _packed(sizes: tuple[int, ...] | None, window: tuple[Any, ...]) -> tuple[int, ...] | None:
    """What a packed op takes in place of `sizes`, if it does, stride, padding_low, padding_high, dilation, groups."""
    *per_axis, groups = window
    packed = [_pack((sizes,))] if sizes is not None else []
    packed += [_pack(tuple(per_axis)), groups if type(groups) is int else None]
    return None if None in packed else tuple(packed)  # type: ignore[arg-type]


def _run(op: Callable[..., R], *arguments: Any) -> R:
    """A packed op, on operands of which nobody wants a gradient here."""
    if not _grad_enabled():
        return op(*arguments)
    _set_grad_enabled(False)
    try:
        return op(*arguments)
    finally:
        _set_grad_enabled(True)


def _packed_if_unseen(first: Tensor, second: Tensor, sizes: Any, window: tuple[Any, ...]) -> tuple[int, ...] | None:
    """The arguments of a packed op, if nothing would notice that it is called and they fit."""
    if (
        is_dynamo_compiling()  # asked for first: Dynamo knows of no mode
        or type(first) not in _PLAIN
        or type(second) not in _PLAIN
        or _dispatch_modes()
        or _function_modes()
        or _profiling()
        or _includes_key(_PRE_DISPATCH)
        or _tracing() is not None
    ):
        return None
    try:
        return _packed(sizes, window)
    except TypeError:  # lists or SymInts have no hash
        return None


def conv(input: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    """Takes what the op of this name takes, and so do the others."""
    packed = _packed_if_unseen(input, weight, None, window)
    if packed is not None:
        try:
            return _run(_conv_packed, input, weight, bias, *packed)
        except NotImplementedError:  # neither CPU nor CUDA: meta, sparse, ...
            pass
    return call(_ops.conv, input, weight, bias, *window)


def conv_input_grad(grad_output: Tensor, weight: Tensor, bias: Tensor | None, input_size: Any, *window: Any) -> Tensor:
    packed = _packed_if_unseen(grad_output, weight, input_size, window)
    if packed is not None:
        try:
            return _run(_conv_input_grad_packed, grad_output, weight, bias, *packed)
        except NotImplementedError:
            pass
    return call(_ops.conv_input_grad, grad_output, weight, bias, input_size, *window)


def conv_weight_grad(grad_output: Tensor, input: Tensor, kernel_size: Any, *window: Any) -> Tensor:
    packed = _packed_if_unseen(grad_output, input, kernel_size, window)
    if packed is not None:
        try:
            return _run(_conv_weight_grad_packed, grad_output, input, *packed)
        except NotImplementedError:
            pass
    return call(_ops.conv_weight_grad, grad_output, input, kernel_size, *window)


def conv_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, window: tuple[Any, ...]
) -> tuple[Tensor, Tensor] | None:
    """conv_input_grad and conv_weight_grad in one call, where a packed op may do that."""
    if type(grad_output) not in _PLAIN:
        return None
    packed = _packed_if_unseen(input, weight, None, window)
    if packed is not None:
        try:
            return _run(_conv_backward_packed, grad_output, input, weight, *packed)
        except NotImplementedError:
            pass
    return None


def im2col(*arguments: Any) -> Tensor:
    return call(_ops.im2col, *arguments)


def col2im(*arguments: Any) -> Tensor:
    return call(_ops.col2im, *arguments)
