"""How the ops act on a batch of problems (torch.func.vmap): by reshaping it into one larger problem.

A batch of images is a larger batch, a batch of weights is more output channels, and where both come in batches each
pair is a group. So no op is called in a loop, and vmap nests.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Op = Callable[..., Tensor]


def _front(tensor: Tensor, dim: int) -> Tensor:
    return tensor.movedim(dim, 0)


def _split(tensor: Tensor, dim: int, *sizes: int) -> Tensor:
    """Like unflatten, but sizes may be zero or symbolic."""
    return tensor.reshape(*tensor.shape[:dim], *sizes, *tensor.shape[dim + 1 :])


def _join(tensor: Tensor, dim: int, count: int) -> Tensor:
    """`count` dimensions from `dim` on become one."""
    size = 1
    for length in tensor.shape[dim : dim + count]:
        size = size * length
    return tensor.reshape(*tensor.shape[:dim], size, *tensor.shape[dim + count :])


def _into_channels(tensor: Tensor, dim: int, groups: int) -> Tensor:
    """The vmapped dimension goes inside each group of dimension 1: (N, C) -> (N, groups * B * C / groups)."""
    batched = _front(tensor, dim)
    grouped = _split(batched, 2, groups, batched.shape[2] // groups)  # (B, N, groups, C / groups)
    return _join(grouped.movedim(0, 2), 1, 3)


def _out_of_channels(tensor: Tensor, dim: int, batch: int, groups: int) -> Tensor:
    """Undoes `_into_channels` on dimension `dim`; the vmapped dimension comes to the front."""
    split = _split(tensor, dim, groups, batch, tensor.shape[dim] // (groups * batch))
    return _join(split.movedim(dim + 1, 0), dim + 1, 2)


def over_batch(op: Op, batch: int, in_dims: Any, tensor: Tensor, *rest: Any) -> tuple[Tensor, int]:
    """An op that treats every image alike: the vmapped dimension joins the batch."""
    result = op(_join(_front(tensor, in_dims[0]), 0, 2), *rest)
    return _split(result, 0, batch, result.shape[0] // batch), 0


def _with_bias(result: Tensor, bias: Tensor | None, dim: int | None) -> Tensor:
    """Adds a bias (C), or one per vmapped problem (B, C), to a result (B, N, C, *sizes)."""
    if bias is None:
        return result
    bias = bias if dim is None else _front(bias, dim).unsqueeze(1)
    return result + bias.reshape(*bias.shape, *(1,) * (result.dim() - 3))


def conv(
    op: Op, batch: int, in_dims: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *window: Any
) -> tuple[Tensor, int]:
    """Input (N, C, *I) and weight (O, C / groups, *K), either with a vmapped dimension."""
    input_dim, weight_dim, bias_dim = in_dims[:3]
    *window_only, groups = window
    if weight_dim is None and input_dim is None:
        result = op(input, weight, None, *window).unsqueeze(0).expand(batch, *(-1,) * input.dim())
    elif weight_dim is None:
        result, _ = over_batch(op, batch, in_dims, input, weight, None, *window)
    elif input_dim is None:
        outputs = weight.movedim(weight_dim, 0)
        stacked = _join(_split(outputs, 1, groups, outputs.shape[1] // groups).movedim(0, 1), 0, 3)
        result = _out_of_channels(op(input, stacked, None, *window), 1, batch, groups)
    else:
        images = _join(_front(input, input_dim).movedim(0, 1), 1, 2)
        weights = _join(_front(weight, weight_dim), 0, 2)
        result = op(images, weights, None, *window_only, batch * groups)
        result = _split(result, 1, batch, result.shape[1] // batch).movedim(1, 0)
    return _with_bias(result, bias, bias_dim), 0


def conv_input_grad(
    op: Op,
    batch: int,
    in_dims: Any,
    grad_output: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_size: Any,
    *window: Any,
) -> tuple[Tensor, int]:
    """grad_output (N, O, *P) and weight (O, C / groups, *K), either with a vmapped dimension."""
    grad_dim, weight_dim, bias_dim = in_dims[:3]
    *window_only, groups = window
    if weight_dim is None and grad_dim is None:
        result = op(grad_output, weight, None, input_size, *window)
        result = result.unsqueeze(0).expand(batch, *(-1,) * result.dim())
    elif weight_dim is None:
        result, _ = over_batch(op, batch, in_dims, grad_output, weight, None, input_size, *window)
    elif grad_dim is None:
        stacked = _join(_front(weight, weight_dim).movedim(0, 1), 1, 2)  # (O, B * C / g, *K)
        result = _out_of_channels(op(grad_output, stacked, None, input_size, *window), 1, batch, groups)
    else:
        grads = _join(_front(grad_output, grad_dim).movedim(0, 1), 1, 2)
        weights = _join(_front(weight, weight_dim), 0, 2)
        result = op(grads, weights, None, input_size, *window_only, batch * groups)
        result = _split(result, 1, batch, result.shape[1] // batch).movedim(1, 0)
    return _with_bias(result, bias, bias_dim), 0


def conv_weight_grad(
    op: Op, batch: int, in_dims: Any, grad_output: Tensor, input: Tensor, kernel_size: Any, *window: Any
) -> tuple[Tensor, int]:
    """grad_output (N, O, *P) and input (N, C, *I), either with a vmapped dimension."""
    grad_dim, input_dim = in_dims[:2]
    *window_only, groups = window
    if input_dim is None:
        stacked = _into_channels(grad_output, grad_dim, groups)
        result = _out_of_channels(op(stacked, input, kernel_size, *window), 0, batch, groups)
    elif grad_dim is None:
        result = op(grad_output, _into_channels(input, input_dim, groups), kernel_size, *window)
        result = _split(result, 1, batch, result.shape[1] // batch).movedim(1, 0)
    else:
        grads = _join(_front(grad_output, grad_dim).movedim(0, 1), 1, 2)
        images = _join(_front(input, input_dim).movedim(0, 1), 1, 2)
        result = op(grads, images, kernel_size, *window_only, batch * groups)
        result = _split(result, 0, batch, result.shape[0] // batch)
    return result, 0
