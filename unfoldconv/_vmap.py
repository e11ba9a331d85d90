"""How the ops act on a batch of problems (torch.func.vmap): by reshaping it into one larger problem.

A batch of images is a larger batch, a batch of weights is more output channels, and where both come in batches each
pair is a group. So no op is called in a loop, and vmap nests.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Op = Callable[..., Tensor]


def front(tensor: Tensor, dim: int) -> Tensor:
    return tensor.movedim(dim, 0)


def split(tensor: Tensor, dim: int, *sizes: int) -> Tensor:
    """Like unflatten, but sizes may be zero or symbolic."""
    return tensor.reshape(*tensor.shape[:dim], *sizes, *tensor.shape[dim + 1 :])


def join(tensor: Tensor, dim: int, count: int) -> Tensor:
    """`count` dimensions from `dim` on become one."""
    size = 1
    for length in tensor.shape[dim : dim + count]:
        size = size * length
    return tensor.reshape(*tensor.shape[:dim], size, *tensor.shape[dim + count :])


def into_channels(tensor: Tensor, dim: int, groups: int) -> Tensor:
    """The vmapped dimension goes inside each group of dimension 1: (N, C) -> (N, groups * B * C / groups)."""
    batched = front(tensor, dim)
    grouped = split(batched, 2, groups, batched.shape[2] // groups)  # (B, N, groups, C / groups)
    return join(grouped.movedim(0, 2), 1, 3)


def out_of_channels(tensor: Tensor, dim: int, batch: int, groups: int) -> Tensor:
    """Undoes `into_channels` on dimension `dim`; the vmapped dimension comes to the front."""
    parts = split(tensor, dim, groups, batch, tensor.shape[dim] // (groups * batch))
    return join(parts.movedim(dim + 1, 0), dim + 1, 2)


def over_batch(op: Op, batch: int, in_dims: Any, tensor: Tensor, *rest: Any) -> tuple[Tensor, int]:
    """An op that treats every image alike: the vmapped dimension joins the batch."""
    result = op(join(front(tensor, in_dims[0]), 0, 2), *rest)
    return split(result, 0, batch, result.shape[0] // batch), 0


def with_bias(result: Tensor, bias: Tensor | None, dim: int | None) -> Tensor:
    """Adds a bias (C), or one per vmapped problem (B, C), to a result (B, N, C, *sizes)."""
    if bias is None:
        return result
    bias = bias if dim is None else front(bias, dim).unsqueeze(1)
    return result + bias.reshape(*bias.shape, *(1,) * (result.dim() - 3))
