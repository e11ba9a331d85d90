"""Convolution of an image that is too large for one machine: each rank holds a slab of it, cut along one spatial axis.

    import torch.distributed as dist
    dist.init_process_group("gloo")
    slab = image.tensor_split(dist.get_world_size(), dim=2)[dist.get_rank()]  # some of the rows of (N, C, H, W)
    output = uc.distributed.conv2d(slab, weight, padding="same")  # the same rows of the output

The windows of a rank reach beyond its slab, into its *halo*. Each function fetches the halo from the ranks that hold
it, convolves, and in the backward pass sends the gradients of the halo back. So the ranks together compute what
`unfoldconv.functional` computes of the whole image, and gradients of every order.

How slabs lie: in the order of the ranks, of any size, also empty, and a halo may span several of them. Position p of
the output lies with the rank that holds element p * stride of the input; positions without such an element lie with
the last rank. So whatever the kernel is, the slabs of the output are as large as those of the input where the stride is
1 and the padding is "same", and two layers of the same stride and output size agree on them.

Who adds up gradients: that of a slab is complete. Each rank has the whole weight and bias, and its gradients of them
are its own share. **The caller adds these up over the ranks**, for instance with

    dist.all_reduce(parameter.grad)

or with DistributedDataParallel, which takes the mean, so that the loss has to be multiplied by the number of ranks.

Every call is a collective: the ranks of the group call in the same order, with the same arguments except for the slab,
and all of them run the backward pass. First they tell each other the sizes of their slabs, two numbers per rank, which
on CUDA waits for the device. A call that is refused is refused on every rank, before any element is sent. A rank that
never comes leaves the others with the error of torch.distributed, after the timeout of the process group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from . import functional
from ._calls import batched, check_tensor
from ._geometry import GeometryError, IntOrTuple, Padding, window_of
from ._slabs import agreed_sizes, move, plan_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["conv1d", "conv2d", "conv3d"]


def _conv(
    function: Callable[..., Tensor],
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrTuple,
    padding: Padding,
    dilation: IntOrTuple,
    groups: int,
    axis: int,
    process_group: ProcessGroup | None,
) -> Tensor:
    """`function` is the convolution of a whole image."""
    if not dist.is_available():
        raise RuntimeError("torch.distributed must be available, but this torch was built without it")
    input, unbatched = batched("input", input, rank + 2)
    check_tensor("weight", weight)
    if not 0 <= axis < rank:
        raise GeometryError(f"axis must be one of the {rank} spatial axes, counted from 0, but got {axis}")
    dim = 2 + axis
    shape = list(input.shape)
    size, shape[dim] = shape[dim], -1
    others = [tensor if tensor is None else (tensor.shape, tensor.dtype) for tensor in (weight, bias)]
    differentiable = torch.is_grad_enabled() and input.requires_grad
    call = (shape, input.dtype, *others, stride, padding, dilation, groups, axis, differentiable)
    sizes = agreed_sizes(call, size, input.device, process_group)

    # The function refuses what is wrong with the whole image, and computes nothing for a batch of none.
    shape[0], shape[dim] = 0, sum(sizes)
    with torch.no_grad():
        positions = function(input.new_empty(shape), weight, bias, stride, padding, dilation, groups).shape[dim]
    window = window_of(shape[2:], weight.shape[2:], stride, padding, dilation)
    plan = plan_of(sizes, positions, weight.shape[dim], axis, window)

    here = dist.get_rank(process_group)
    if plan.read != plan.held:
        input = move(input, dim, plan.held, plan.read, process_group)
    paddings = list(zip(window.padding_low, window.padding_high, strict=True))
    paddings[axis] = plan.padding[here]
    output = function(input, weight, bias, window.stride, paddings, window.dilation, groups)
    if plan.positions[here] == 0:
        output = output.narrow(dim, 0, 0)
    return output.squeeze(0) if unbatched else output


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    *,
    axis: int = 0,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """`unfoldconv.conv1d` of a signal in slabs, see `conv2d`: input (N, C, slab)."""
    return _conv(functional.conv1d, 1, input, weight, bias, stride, padding, dilation, groups, axis, process_group)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    *,
    axis: int = 0,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """`unfoldconv.conv2d` of an image in slabs.

    Args:
        input: This rank's slab, shape (N, C, slab, W) with axis=0, (N, C, H, slab) with axis=1; N may be absent.
        weight: The whole weight, shape (O, C / groups, *kernel_size), the same on every rank.
        bias: One number per output channel, shape (O,), the same on every rank, or None.
        stride: As in `unfoldconv.conv2d`.
        padding: As in `unfoldconv.conv2d`, of the whole image: between slabs there is none.
        dilation: As in `unfoldconv.conv2d`.
        groups: As in `unfoldconv.conv2d`.
        axis: Which spatial axis the slabs divide, counted from 0.
        process_group: The ranks that hold slabs, in the order of their ranks in it. Default: all.

    Returns:
        This rank's slab of the output, shape (N, O, *positions); along `axis`, positions p with p * stride in the
        input's slab. It may be empty.

    Raises:
        GeometryError: on every rank, if `unfoldconv.conv2d` refuses the whole image, or ranks differ in more than the
            size of the slab.
        TypeError: if an argument is of the wrong type.
    """
    return _conv(functional.conv2d, 2, input, weight, bias, stride, padding, dilation, groups, axis, process_group)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    *,
    axis: int = 0,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """`unfoldconv.conv3d` of a volume in slabs, see `conv2d`: with axis=0, input (N, C, slab, H, W)."""
    return _conv(functional.conv3d, 3, input, weight, bias, stride, padding, dilation, groups, axis, process_group)
