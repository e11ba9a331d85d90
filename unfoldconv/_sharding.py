"""How the ops act on DTensors: which placements of the operands give which placement of the result.

Importing this module tells torch. `_below.call` does that, so only `torch.ops.unfoldconv.*` called in inference mode
may come too early, and torch refuses them.

Each line of a table is one way to share the work along one axis of the device mesh: the placement of the result, then
those of the op's tensors. Torch takes the line for which least data have to move between the ranks, and moves them.

* Shards of the batch, or of the channels of a result, are computed each on its rank.
* A result that is a sum over what is sharded (over the input channels of a convolution, over the images of a weight
  gradient) is partial. So has to be its bias, lest it be added once per rank.
* Every op is linear in each operand, so it takes partial sums as they are.
* With several groups, a rank that has some of the channels would need some of the groups, but the number of groups is
  an argument that no placement changes. So then only the batch is shared.
"""

import math
from collections.abc import Callable
from typing import Any

from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
from torch.distributed.tensor.experimental import register_sharding
from torch.distributed.tensor.placement_types import Placement

from . import _ops

Line = tuple[Placement, ...]
Choices = list[tuple[list[Placement], list[Placement | None]]]

_FULL, _SUM, _FIRST, _SECOND = Replicate(), Partial(), Shard(0), Shard(1)

# output (N, O, *P): input (N, C, *I), weight (O, C / groups, *K), bias (O)
_CONV: tuple[Line, ...] = (
    (_FULL, _FULL, _FULL, _FULL),
    (_FIRST, _FIRST, _FULL, _FULL),
    (_SUM, _SUM, _FULL, _SUM),
    (_SUM, _FULL, _SUM, _SUM),
)
_CONV_CHANNELS: tuple[Line, ...] = (
    (_SECOND, _FULL, _FIRST, _FIRST),
    (_SUM, _SECOND, _SECOND, _SUM),
)

# grad_input (N, C, *I): grad_output (N, O, *P), weight (O, C / groups, *K), bias (C)
_INPUT_GRAD = _CONV
_INPUT_GRAD_CHANNELS: tuple[Line, ...] = (
    (_SECOND, _FULL, _SECOND, _FIRST),
    (_SUM, _SECOND, _FIRST, _SUM),
)

# grad_weight (O, C / groups, *K): grad_output (N, O, *P), input (N, C, *I)
_WEIGHT_GRAD: tuple[Line, ...] = (
    (_FULL, _FULL, _FULL),
    (_SUM, _FIRST, _FIRST),
    (_SUM, _SUM, _FULL),
    (_SUM, _FULL, _SUM),
)
_WEIGHT_GRAD_CHANNELS: tuple[Line, ...] = (
    (_FIRST, _SECOND, _FULL),
    (_SECOND, _FULL, _SECOND),
)

# columns (N, C * prod(K), prod(P)): image (N, C, *I), and the other way round
_PATCHES: tuple[Line, ...] = ((_FULL, _FULL), (_FIRST, _FIRST), (_SUM, _SUM))
_PATCHES_CHANNELS: tuple[Line, ...] = ((_SECOND, _SECOND),)


def _choices(lines: tuple[Line, ...], arguments: tuple[Any, ...]) -> Choices:
    """The lines as `register_sharding` wants them: placements of all arguments, None for those that are no tensors."""
    dtype = arguments[0].tensor_meta.dtype
    divisible = dtype.is_floating_point or dtype.is_complex  # torch makes a tensor partial by dividing it
    choices: Choices = []
    for result, *operands in lines:
        if divisible or _SUM not in (result, *operands):
            tensors = [None if arguments[i] is None else placement for i, placement in enumerate(operands)]
            choices.append(([result], [*tensors, *[None] * (len(arguments) - len(tensors))]))
    return choices


def _register(op: Any, rule: Callable[..., Choices]) -> None:
    register_sharding(op)(rule)
    # What decides which remembered answer is given. By itself torch overlooks arguments that are lists: it would give
    # the output size of one stride to a call with another.
    tensors = sum("Tensor" in str(argument.type) for argument in op._schema.arguments)
    DTensor._op_dispatcher.sharding_propagator.op_to_schema_info[op] = RuntimeSchemaInfo(tensors, needs_pytree=True)


def _convolution(lines: tuple[Line, ...], channels: tuple[Line, ...]) -> Callable[..., Choices]:
    def rule(*arguments: Any) -> Choices:
        groups = arguments[-1]
        return _choices(lines + channels if groups == 1 else lines, arguments)

    return rule


def _patches(channels: int, arguments: tuple[Any, ...]) -> Choices:
    """Shards of the rows of columns are shards of the channels where every rank has as many of them."""
    even = channels % arguments[0].mesh.size() == 0
    return _choices(_PATCHES + _PATCHES_CHANNELS if even else _PATCHES, arguments)


def _im2col(input: Any, *rest: Any) -> Choices:
    return _patches(input.shape[1], (input, *rest))


def _col2im(columns: Any, input_size: Any, kernel_size: Any, *window: Any) -> Choices:
    return _patches(columns.shape[1] // math.prod(kernel_size), (columns, input_size, kernel_size, *window))


_register(_ops.conv, _convolution(_CONV, _CONV_CHANNELS))
_register(_ops.conv_input_grad, _convolution(_INPUT_GRAD, _INPUT_GRAD_CHANNELS))
_register(_ops.conv_weight_grad, _convolution(_WEIGHT_GRAD, _WEIGHT_GRAD_CHANNELS))
_register(_ops.im2col, _im2col)
_register(_ops.col2im, _col2im)
