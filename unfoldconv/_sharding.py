"""How the ops act on DTensors: which placements of the operands give which placement of the result.

Importing this module tells torch what the records of the ops say. `_fast_path.call` does that, so only
`torch.ops.unfoldconv.*` called in inference mode may come too early, and torch refuses them.

Each line of a record is one way to share the work along one axis of the device mesh. Torch takes the line for which
least data have to move between the ranks, and moves them.

* Shards of the batch, or of the channels of a result, are computed each on its rank.
* A result that is a sum over what is sharded (over the input channels of a convolution, over the images of a weight
  gradient) is partial.
* Every op is linear in each operand, so it takes partial sums as they are.
"""

from typing import Any

from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
from torch.distributed.tensor.experimental import register_sharding
from torch.distributed.tensor.placement_types import Placement

from ._ops import FIRST, FULL, RECORDS, SECOND, SUM, Op

Choices = list[tuple[list[Placement], list[Placement | None]]]

_PLACEMENTS: dict[str | int, Placement] = {FULL: Replicate(), SUM: Partial(), FIRST: Shard(0), SECOND: Shard(1)}


def _choices(op: Op, arguments: tuple[Any, ...]) -> Choices:
    """The lines as `register_sharding` wants them: placements of all arguments, None for those that are no tensors."""
    sharding, dtype = op.sharding, arguments[0].tensor_meta.dtype
    lines = sharding.lines + sharding.of_channels if sharding.channels_fit(*arguments) else sharding.lines
    divisible = dtype.is_floating_point or dtype.is_complex  # torch makes a tensor partial by dividing it
    choices: Choices = []
    for line in lines:
        if divisible or SUM not in line:
            result, *operands = [_PLACEMENTS[part] for part in line]
            tensors = [None if arguments[i] is None else placement for i, placement in enumerate(operands)]
            choices.append(([result], [*tensors, *[None] * (len(arguments) - len(tensors))]))
    return choices


def _register(op: Op) -> None:
    overload: Any = op.overload
    register_sharding(overload)(lambda *arguments: _choices(op, arguments))
    # What decides which remembered answer is given. By itself torch overlooks arguments that are lists: it would give
    # the output size of one stride to a call with another.
    remembered = RuntimeSchemaInfo(op.tensors, needs_pytree=True)
    DTensor._op_dispatcher.sharding_propagator.op_to_schema_info[overload] = remembered


for _op in RECORDS.values():
    _register(_op)
