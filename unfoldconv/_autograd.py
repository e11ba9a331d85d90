"""The derivatives of an op, and the three routes to it.

Every op is linear in each of its operands. So its record has to tell only the gradient of each operand, in terms of
the other ops, and its tangent is a sum of the op itself. Because the set of ops is closed under differentiation, there
are derivatives of every order.

What `define` returns takes what the op takes and picks, for the least overhead:

1. nothing needs a gradient: the op itself;
2. inside a transform of torch.func or a forward-mode level: a Function with `setup_context`, `jvp` and `vmap`;
3. otherwise, compiling included: the lean Function, which saves only what a needed gradient uses.

It is also the op's kernel for the Autograd dispatch key, so `torch.ops.unfoldconv.*` differentiates as well.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.compiler import is_dynamo_compiling

from . import _fast_path
from ._binding import NAMESPACE
from ._ops import RECORDS, Op

_functorch_level: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack

_library = torch.library.Library(NAMESPACE, "IMPL")


def define(op: Op) -> Callable[..., Tensor]:
    """Tells torch all about an op, and returns it as everything above autograd calls it."""
    count = op.tensors

    def call(*arguments: Any) -> Tensor:
        tensors, numbers = arguments[:count], arguments[count:]
        if is_dynamo_compiling():
            return lean.apply(*tensors, numbers) if _needs_grad(tensors) else below(tensors, numbers)
        if _transforming():
            return full.apply(*tensors, numbers)  # type: ignore[no-any-return]
        if _needs_grad(tensors):
            return apply(*tensors, numbers)  # type: ignore[no-any-return]
        return below(tensors, numbers)

    overload = op.overload

    def batched(info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
        return op.vmap(overload, info.batch_size, in_dims, *arguments)

    below, backward = _fast_path.below_autograd(op), _backward(op)
    lean, full = _lean_function(op, below, backward), _full_function(op, call, backward)
    # `lean.apply` without the part of it that only the transforms of torch.func need. Dynamo does not know it.
    apply = super(Function, lean).apply  # type: ignore[misc]
    torch.library.register_fake(f"{NAMESPACE}::{op.name}", op.fake)
    torch.library.register_vmap(f"{NAMESPACE}::{op.name}", batched, lib=_library)
    _library.impl(op.name, call, "Autograd")
    RECORDS[op.name] = op
    return call


def _transforming() -> bool:
    return _functorch_level() is not None or forward_ad._current_level >= 0


def _needs_grad(tensors: tuple[Tensor | None, ...]) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def _is_recorded(*tensors: Tensor) -> bool:
    """Whether anything but an op's result is wanted of it."""
    return is_dynamo_compiling() or _transforming() or _needs_grad(tensors)


# --- the Functions ----------------------------------------------------------------------------------------------------
# What an op takes besides tensors is one argument of them, the last: each costs time in both directions. An operand is
# saved for the gradient of the other one; ctx.saved_tensors are both, None where the gradient is not needed.


def _function(op: Op, suffix: str, **methods: Callable[..., Any]) -> type[Function]:
    """A class that is named in errors and graphs, `_ConvInputGrad` for conv_input_grad."""
    name = "".join(part.capitalize() for part in op.name.split("_"))
    make_class: Callable[..., type[Function]] = type(Function)
    return make_class(f"_{name}{suffix}", (Function,), {key: staticmethod(method) for key, method in methods.items()})


def _lean_function(op: Op, below: Callable[..., Tensor], backward: Callable[..., Any]) -> type[Function]:
    def forward_of_one(ctx: Any, operand: Tensor, numbers: Any) -> Tensor:
        ctx.numbers, ctx.shapes = numbers, (operand.shape,)
        return below((operand,), numbers)

    def forward_of_two(ctx: Any, *arguments: Any) -> Tensor:
        tensors, numbers = arguments[:-1], arguments[-1]
        first, second, needs = tensors[0], tensors[1], ctx.needs_input_grad
        ctx.save_for_backward(first if needs[1] else None, second if needs[0] else None)
        ctx.numbers, ctx.shapes = numbers, (first.shape, second.shape)
        return below(tensors, numbers)

    return _function(op, "", forward=forward_of_one if op.operands == 1 else forward_of_two, backward=backward)


def _full_function(op: Op, call: Callable[..., Tensor], backward: Callable[..., Any]) -> type[Function]:
    overload, operands = op.overload, op.operands
    no_bias = (None,) * op.bias

    def forward(*arguments: Any) -> Tensor:
        *tensors, numbers = arguments
        return _fast_path.call(overload, *tensors, *numbers)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.numbers, ctx.output_shape = inputs[-1], output.shape
        ctx.shapes = tuple([operand.shape for operand in inputs[:operands]])
        if operands == 2:
            ctx.save_for_backward(*inputs[:2])
            ctx.save_for_forward(*inputs[:2])

    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        """The product rule: a term for each operand, with its tangent in its place, and the tangent of the bias."""
        primals = ctx.saved_tensors if operands == 2 else (None,)
        terms = []
        for index in range(operands):
            if tangents[index] is not None:
                factors = (*primals[:index], tangents[index], *primals[index + 1 :])
                terms.append(call(*factors, *no_bias, *ctx.numbers))
        if op.bias and tangents[operands] is not None:
            bias = tangents[operands].reshape(-1, *(1,) * (len(ctx.output_shape) - 2))
            terms.append(bias.expand(ctx.output_shape))
        total = None
        for term in terms:
            total = term if total is None else total + term
        return total

    def vmap(info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
        *tensors, numbers = arguments
        return op.vmap(call, info.batch_size, in_dims, *tensors, *numbers)

    return _function(op, "Full", forward=forward, setup_context=setup_context, backward=backward, jvp=jvp, vmap=vmap)


def _backward(op: Op) -> Callable[..., Any]:
    """From the gradient of the result to those of all arguments of a Function, None for its numbers."""
    if op.operands == 1:
        (gradient,) = op.gradients

        def backward_of_one(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            return gradient(grad, *ctx.shapes, ctx.numbers), None

        return backward_of_one

    (first_gradient, second_gradient), has_bias = op.gradients, op.bias
    together = _fast_path.packed_gradients(op)

    def backward_of_two(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs, numbers, (first, second) = ctx.needs_input_grad, ctx.numbers, ctx.saved_tensors
        bias_grad = (_bias_grad(grad) if needs[2] else None,) if has_bias else ()
        if together is not None and needs[0] and needs[1] and not _is_recorded(grad, first, second):
            both = together(grad, _conj(first), _conj(second), numbers)
            if both is not None:
                return *both, *bias_grad, None
        return (
            first_gradient(grad, _conj(second), ctx.shapes[0], numbers) if needs[0] else None,
            second_gradient(grad, _conj(first), ctx.shapes[1], numbers) if needs[1] else None,
            *bias_grad,
            None,
        )

    return backward_of_two


def _conj(tensor: Tensor) -> Tensor:
    return tensor.conj() if tensor.is_complex() else tensor


def _bias_grad(grad: Tensor) -> Tensor:
    return grad.sum([0, *range(2, grad.dim())])
