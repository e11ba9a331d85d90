"""The derivatives of the five ops, and the three routes to an op.

Every op is linear in each tensor that it takes, and each one's derivative is another of the five:

    conv(x, w)              d/dx: conv_input_grad(g, w)    d/dw: conv_weight_grad(g, x)
    conv_input_grad(y, w)   d/dy: conv(g, w)               d/dw: conv_weight_grad(y, g)
    conv_weight_grad(y, x)  d/dy: conv(x, g)               d/dx: conv_input_grad(y, g)
    im2col(x)               d/dx: col2im(g)
    col2im(c)               d/dc: im2col(g)

For complex tensors the operand that a derivative multiplies by is conjugated, torch's convention.

The functions below take what the op takes and pick, for the least overhead:

1. nothing needs a gradient: the op itself;
2. inside a transform of torch.func or a forward-mode level: a Function with `setup_context`, `jvp` and `vmap`;
3. otherwise, compiling included: the lean Function, which saves only what a needed gradient uses.

They are also the ops' kernels for the Autograd dispatch key, so `torch.ops.unfoldconv.*` differentiates as well.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.compiler import is_dynamo_compiling

from . import _below, _ops, _vmap
from ._binding import NAMESPACE

_functorch_level: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack

Grads = tuple[Any, ...]


def _conj(tensor: Tensor) -> Tensor:
    return tensor.conj() if tensor.is_complex() else tensor


def _bias_grad(grad: Tensor) -> Tensor:
    return grad.sum([0, *range(2, grad.dim())])


@functools.cache
def _applied(function: type[Function]) -> Callable[..., Any]:
    """`function.apply` without the part of it that only the transforms of torch.func need; Dynamo knows it not."""
    base: Any = super(Function, function)
    return base.apply  # type: ignore[no-any-return]


def _transforming() -> bool:
    return _functorch_level() is not None or forward_ad._current_level >= 0


def _needs_grad(*tensors: Tensor | None) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def _route(op: Callable[..., Tensor], lean: type[Function], full: type[Function], tensors: Any, *rest: Any) -> Tensor:
    if is_dynamo_compiling():
        return lean.apply(*tensors, rest) if _needs_grad(*tensors) else op(*tensors, *rest)
    if _transforming():
        return full.apply(*tensors, *rest)  # type: ignore[no-any-return]
    if _needs_grad(*tensors):
        return _applied(lean)(*tensors, rest)  # type: ignore[no-any-return]
    return op(*tensors, *rest)


def _is_recorded(*tensors: Tensor) -> bool:
    """Whether anything but an op's result is wanted of it."""
    return is_dynamo_compiling() or _transforming() or _needs_grad(*tensors)


# --- the formulas: (context, grad) -> gradients of the tensors, (context, tangents) -> tangent -----------------------
# ctx.saved_tensors are the op's two operands (the lean Functions leave out one that no needed gradient uses),
# ctx.window is (stride, padding_low, padding_high, dilation[, groups]), ctx.sizes what shapes a gradient has to know.


def _conv_vjp(ctx: Any, grad: Tensor) -> Grads:
    input, weight = ctx.saved_tensors
    input_shape, weight_shape = ctx.sizes
    needs = ctx.needs_input_grad
    bias_grad = _bias_grad(grad) if needs[2] else None
    if needs[0] and needs[1] and not _is_recorded(grad, input, weight):
        both = _below.conv_backward(grad, _conj(input), _conj(weight), ctx.window)
        if both is not None:
            return *both, bias_grad
    return (
        conv_input_grad(grad, _conj(weight), None, input_shape[2:], *ctx.window) if needs[0] else None,
        conv_weight_grad(grad, _conj(input), weight_shape[2:], *ctx.window) if needs[1] else None,
        bias_grad,
    )


def _conv_input_grad_vjp(ctx: Any, grad: Tensor) -> Grads:
    grad_output, weight = ctx.saved_tensors
    (weight_shape,) = ctx.sizes
    needs = ctx.needs_input_grad
    return (
        conv(grad, _conj(weight), None, *ctx.window) if needs[0] else None,
        conv_weight_grad(_conj(grad_output), grad, weight_shape[2:], *ctx.window) if needs[1] else None,
        _bias_grad(grad) if needs[2] else None,
    )


def _conv_weight_grad_vjp(ctx: Any, grad: Tensor) -> Grads:
    grad_output, input = ctx.saved_tensors
    (input_shape,) = ctx.sizes
    needs = ctx.needs_input_grad
    return (
        conv(_conj(input), grad, None, *ctx.window) if needs[0] else None,
        conv_input_grad(_conj(grad_output), grad, None, input_shape[2:], *ctx.window) if needs[1] else None,
    )


def _sum(*terms: Tensor | None) -> Tensor | None:
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def _bilinear_jvp(
    op: Callable[..., Tensor], ctx: Any, first: Tensor | None, second: Tensor | None, *rest: Any
) -> Tensor | None:
    """The product rule of an op on ctx.saved_tensors; `rest` is what follows the two operands."""
    a, b = ctx.saved_tensors
    return _sum(
        op(first, b, *rest) if first is not None else None,
        op(a, second, *rest) if second is not None else None,
    )


def _bias_tangent(ctx: Any, tangent: Tensor | None) -> Tensor | None:
    if tangent is None:
        return None
    return tangent.reshape(-1, *(1,) * (len(ctx.output_shape) - 2)).expand(ctx.output_shape)


# --- the Functions ----------------------------------------------------------------------------------------------------
# What an op takes besides tensors is one argument of a lean Function: each costs time in both directions.


class _Conv(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, window: Grads) -> Tensor:
        needs = ctx.needs_input_grad
        ctx.save_for_backward(input if needs[1] else None, weight if needs[0] else None)
        ctx.window, ctx.sizes = window, (input.shape, weight.shape)
        return _below.conv(input, weight, bias, *window)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        return *_conv_vjp(ctx, *grads), None


class _ConvFull(Function):
    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
        return _below.call(_ops.conv, input, weight, bias, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: Grads, output: Tensor) -> None:
        input, weight, _, *window = inputs
        ctx.save_for_backward(input, weight)
        ctx.save_for_forward(input, weight)
        ctx.window, ctx.sizes = tuple(window), (input.shape, weight.shape)
        ctx.output_shape = output.shape

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        return *_conv_vjp(ctx, *grads), *(None,) * 5

    @staticmethod
    def jvp(ctx: Any, input: Tensor | None, weight: Tensor | None, bias: Tensor | None, *_: Any) -> Tensor | None:
        return _sum(_bilinear_jvp(conv, ctx, input, weight, None, *ctx.window), _bias_tangent(ctx, bias))

    @staticmethod
    def vmap(info: Any, in_dims: Grads, *arguments: Any) -> tuple[Tensor, int]:
        return _vmap.conv(conv, info.batch_size, in_dims, *arguments)


class _ConvInputGrad(Function):
    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, weight: Tensor, bias: Tensor | None, rest: Grads) -> Tensor:
        needs = ctx.needs_input_grad
        ctx.save_for_backward(grad_output if needs[1] else None, weight if needs[0] else None)
        ctx.window, ctx.sizes = rest[1:], (weight.shape,)
        return _below.conv_input_grad(grad_output, weight, bias, *rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        return *_conv_input_grad_vjp(ctx, *grads), None


class _ConvInputGradFull(Function):
    @staticmethod
    def forward(grad_output: Tensor, weight: Tensor, bias: Tensor | None, input_size: Any, *window: Any) -> Tensor:
        return _below.call(_ops.conv_input_grad, grad_output, weight, bias, input_size, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: Grads, output: Tensor) -> None:
        grad_output, weight, _, input_size, *window = inputs
        ctx.save_for_backward(grad_output, weight)
        ctx.save_for_forward(grad_output, weight)
        ctx.window, ctx.sizes, ctx.input_size = tuple(window), (weight.shape,), input_size
        ctx.output_shape = output.shape

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        return *_conv_input_grad_vjp(ctx, *grads), *(None,) * 6

    @staticmethod
    def jvp(ctx: Any, grad_output: Tensor | None, weight: Tensor | None, bias: Tensor | None, *_: Any) -> Tensor | None:
        product = _bilinear_jvp(conv_input_grad, ctx, grad_output, weight, None, ctx.input_size, *ctx.window)
        return _sum(product, _bias_tangent(ctx, bias))

    @staticmethod
    def vmap(info: Any, in_dims: Grads, *arguments: Any) -> tuple[Tensor, int]:
        return _vmap.conv_input_grad(conv_input_grad, info.batch_size, in_dims, *arguments)


class _ConvWeightGrad(Function):
    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, input: Tensor, rest: Grads) -> Tensor:
        needs = ctx.needs_input_grad
        ctx.save_for_backward(grad_output if needs[1] else None, input if needs[0] else None)
        ctx.window, ctx.sizes = rest[1:], (input.shape,)
        return _below.conv_weight_grad(grad_output, input, *rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        return *_conv_weight_grad_vjp(ctx, *grads), None


class _ConvWeightGradFull(Function):
    @staticmethod
    def forward(grad_output: Tensor, input: Tensor, kernel_size: Any, *window: Any) -> Tensor:
        return _below.call(_ops.conv_weight_grad, grad_output, input, kernel_size, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: Grads, output: Tensor) -> None:
        grad_output, input, kernel_size, *window = inputs
        ctx.save_for_backward(grad_output, input)
        ctx.save_for_forward(grad_output, input)
        ctx.window, ctx.sizes, ctx.kernel_size = tuple(window), (input.shape,), kernel_size

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        return *_conv_weight_grad_vjp(ctx, *grads), *(None,) * 6

    @staticmethod
    def jvp(ctx: Any, grad_output: Tensor | None, input: Tensor | None, *_: Any) -> Tensor | None:
        return _bilinear_jvp(conv_weight_grad, ctx, grad_output, input, ctx.kernel_size, *ctx.window)

    @staticmethod
    def vmap(info: Any, in_dims: Grads, *arguments: Any) -> tuple[Tensor, int]:
        return _vmap.conv_weight_grad(conv_weight_grad, info.batch_size, in_dims, *arguments)


class _Im2col(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, window: Grads) -> Tensor:
        ctx.sizes = (input.shape[2:], *window)
        return _below.im2col(input, *window)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        return col2im(*grads, *ctx.sizes), None


class _Im2colFull(Function):
    @staticmethod
    def forward(input: Tensor, kernel_size: Any, *window: Any) -> Tensor:
        return _below.call(_ops.im2col, input, kernel_size, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: Grads, output: Tensor) -> None:
        ctx.sizes = (inputs[0].shape[2:], *inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        return col2im(*grads, *ctx.sizes), *(None,) * 5

    @staticmethod
    def jvp(ctx: Any, input: Tensor, *_: Any) -> Tensor:
        return im2col(input, *ctx.sizes[1:])

    @staticmethod
    def vmap(info: Any, in_dims: Grads, *arguments: Any) -> tuple[Tensor, int]:
        return _vmap.over_batch(im2col, info.batch_size, in_dims, *arguments)


class _Col2im(Function):
    @staticmethod
    def forward(ctx: Any, columns: Tensor, rest: Grads) -> Tensor:
        ctx.sizes = rest[1:]
        return _below.col2im(columns, *rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        return im2col(*grads, *ctx.sizes), None


class _Col2imFull(Function):
    @staticmethod
    def forward(columns: Tensor, input_size: Any, *rest: Any) -> Tensor:
        return _below.call(_ops.col2im, columns, input_size, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: Grads, output: Tensor) -> None:
        ctx.input_size, ctx.sizes = inputs[1], tuple(inputs[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        return im2col(*grads, *ctx.sizes), *(None,) * 6

    @staticmethod
    def jvp(ctx: Any, columns: Tensor, *_: Any) -> Tensor:
        return col2im(columns, ctx.input_size, *ctx.sizes)

    @staticmethod
    def vmap(info: Any, in_dims: Grads, *arguments: Any) -> tuple[Tensor, int]:
        return _vmap.over_batch(col2im, info.batch_size, in_dims, *arguments)


# --- the routes -------------------------------------------------------------------------------------------------------


def conv(input: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    """y = W im2col(x): input (N, C, *I), weight (O, C / groups, *K), bias (O) -> (N, O, *P)."""
    return _route(_below.conv, _Conv, _ConvFull, (input, weight, bias), *window)


def conv_input_grad(grad_output: Tensor, weight: Tensor, bias: Tensor | None, input_size: Any, *window: Any) -> Tensor:
    """The adjoint of conv in its input: grad_output (N, O, *P) -> (N, C, *input_size), plus bias (C)."""
    tensors = (grad_output, weight, bias)
    return _route(_below.conv_input_grad, _ConvInputGrad, _ConvInputGradFull, tensors, input_size, *window)


def conv_weight_grad(grad_output: Tensor, input: Tensor, kernel_size: Any, *window: Any) -> Tensor:
    """The adjoint of conv in its weight: grad_output (N, O, *P), input (N, C, *I) -> (O, C / groups, *K)."""
    return _route(
        _below.conv_weight_grad, _ConvWeightGrad, _ConvWeightGradFull, (grad_output, input), kernel_size, *window
    )


def im2col(input: Tensor, kernel_size: Any, *window: Any) -> Tensor:
    """Input (N, C, *I) -> columns (N, C * prod(K), prod(P))."""
    return _route(_below.im2col, _Im2col, _Im2colFull, (input,), kernel_size, *window)


def col2im(columns: Tensor, input_size: Any, kernel_size: Any, *window: Any) -> Tensor:
    """The adjoint of im2col: columns (N, C * prod(K), prod(P)) -> (N, C, *input_size)."""
    return _route(_below.col2im, _Col2im, _Col2imFull, (columns,), input_size, kernel_size, *window)


# For calls of torch.ops.unfoldconv.* themselves.
_library = torch.library.Library(NAMESPACE, "IMPL")


def _register(function: Callable[..., Tensor], rule: Callable[..., tuple[Tensor, int]]) -> None:
    name = function.__name__

    def batched(info: Any, in_dims: Grads, *arguments: Any) -> tuple[Tensor, int]:
        return rule(getattr(_ops, name), info.batch_size, in_dims, *arguments)

    _library.impl(name, function, "Autograd")
    torch.library.register_vmap(f"{NAMESPACE}::{name}", batched, lib=_library)


_register(conv, _vmap.conv)
_register(conv_input_grad, _vmap.conv_input_grad)
_register(conv_weight_grad, _vmap.conv_weight_grad)
_register(im2col, _vmap.over_batch)
_register(col2im, _vmap.over_batch)
