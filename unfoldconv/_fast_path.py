"""The ops below autograd, in the cheapest way that nobody can tell from the public op.

Most of what a small call costs is the conversion of lists of numbers to those of the dispatcher. So where nobody looks
on, the private twins of `csrc/binding/packed.h` are called, which take the numbers per axis packed into one integer.
The public ops, which mean the same, are called wherever somebody might see the difference (subclasses of Tensor,
dispatch modes, tracing, profiling) and for numbers that do not fit.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from ._binding import NAMESPACE
from ._ops import Numbers, Op, namespace

_library = torch.library.Library(NAMESPACE, "IMPL")

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
"""Shared evenly by the numbers, as in csrc/binding/packed.h."""

_PLAIN = frozenset((Tensor, torch.nn.Parameter))


def _announce_shardings(operands: tuple[Any, ...]) -> None:
    """Tells torch how the ops act on DTensors once there can be one; before, the import would take a second.

    Dynamo runs an import while it traces.
    """
    for operand in operands:
        if isinstance(operand, Tensor) and type(operand) not in _PLAIN and "torch.distributed.tensor" in sys.modules:
            from . import _sharding  # noqa: F401


def call(overload: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The public op without its Autograd kernel. Dynamo does not trace the guard: its graph holds the op itself."""
    _announce_shardings(arguments[:2])
    if is_dynamo_compiling():
        return overload(*arguments)
    with _below_autograd():
        return overload(*arguments)


def below_autograd(op: Op) -> Callable[..., Tensor]:
    """The op in the cheapest way that means the same; takes its tensors and its numbers, each as one tuple."""
    overload = op.overload
    if not op.packed:
        return lambda tensors, numbers: call(overload, *tensors, *numbers)
    run_packed = _packed_op(op.name)

    def below(tensors: tuple[Any, ...], numbers: Numbers) -> Any:
        packed = _packed_if_unseen(tensors[0], tensors[1], numbers)
        if packed is not None:
            try:
                return _run(run_packed, *tensors, *packed)
            except NotImplementedError:  # neither CPU nor CUDA: meta, sparse, ...
                pass
        return call(overload, *tensors, *numbers)

    return below


def packed_gradients(op: Op) -> Callable[..., tuple[Tensor, Tensor] | None] | None:
    """The gradients of both operands in one call, if there is a packed op of them; that gives None where it may not."""
    if op.packed_gradients is None:
        return None
    run_packed = _packed_op(op.packed_gradients)

    def gradients(grad: Tensor, first: Tensor, second: Tensor, numbers: Numbers) -> Any:
        packed = _packed_if_unseen(first, second, numbers) if type(grad) in _PLAIN else None
        if packed is not None:
            try:
                return _run(run_packed, grad, first, second, *packed)
            except NotImplementedError:
                pass
        return None

    return gradients


@functools.cache
def _packed_op(name: str) -> Callable[..., Any]:
    """A packed op without the Python around it, where torch has it by this name.

    A guard around the call would cost a microsecond. So the packed ops record no gradient, and refuse grad mode.
    """
    _library.impl(f"_{name}_packed", torch.library.fallthrough_kernel, "Autograd")
    overload = getattr(namespace, f"_{name}_packed").default
    return getattr(overload, "_op", overload)  # type: ignore[no-any-return]


def _run(op: Callable[..., Any], *arguments: Any) -> Any:
    """A packed op, on operands of which nobody wants a gradient here."""
    if not _grad_enabled():
        return op(*arguments)
    _set_grad_enabled(False)
    try:
        return op(*arguments)
    finally:
        _set_grad_enabled(True)


def _packed_if_unseen(first: Tensor, second: Tensor, numbers: Numbers) -> tuple[int, ...] | None:
    """What a packed op takes in place of the numbers, if nothing would notice that it is called and they fit."""
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
        return _packed(numbers)
    except TypeError:  # lists or SymInts have no hash
        return None


@functools.lru_cache(maxsize=4096)
def _packed(numbers: Numbers) -> tuple[int, ...] | None:
    """One number for each list before the window, one for the window, and the groups; None if one does not fit."""
    *lists, stride, padding_low, padding_high, dilation, groups = numbers
    packed = [_pack(sizes) for sizes in (*lists, (*stride, *padding_low, *padding_high, *dilation))]
    packed.append(groups if type(groups) is int else None)
    return None if None in packed else tuple(packed)  # type: ignore[arg-type]


def _pack(numbers: tuple[Any, ...]) -> int | None:
    """Several numbers in one, the first in the lowest bits; None if one of them does not fit."""
    bits = _PACKED_BITS // len(numbers)
    packed = 0
    for number in reversed(numbers):
        if type(number) is not int or not 0 <= number < 1 << bits:
            return None
        packed = packed << bits | number
    return packed
