"""What an op is to Python: one record, from which everything is made that torch has to know of it.

To add an op:

1. `csrc/binding/ops.cpp`: the function, with its checks from `checks.h` beside it, and its line in the table at the
   end, which is its schema and makes its packed twin, if it has one.
2. `_conv_ops.py` or `_patch_ops.py`: its record, handed to `_autograd.define`. The record's fake kernel refuses what
   the function refuses, in the same words (`_checks.py`).
3. What calls it: a function of `_convolution.py` or `_patches.py`, and what it becomes in ONNX, in `onnx.py`.
4. Its lines in `tests/derivatives.py` (derivatives, compiling) and in the tables `_direct_calls` of
   `tests/ops/test_autograd.py`, `OPS` of `tests/integration/test_sharding.py`, `REFUSED_BY_OPS` of
   `tests/ops/test_errors.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ._binding import NAMESPACE

Numbers: TypeAlias = tuple[Any, ...]
"""What an op takes after its tensors: for each of its lists one number per axis, and the number of groups last."""

FULL, SUM, FIRST, SECOND = "full", "sum", 0, 1
"""How a tensor lies on the ranks: whole on each, as terms of a sum, in shards of dimension 0 or 1."""

Line: TypeAlias = tuple[str | int, ...]
"""One way to share an op's work: how its result lies, then how each of its tensors does."""


@dataclass(frozen=True)
class Sharding:
    """Every way to share the work of an op along one axis of a device mesh.

    Attributes:
        lines: Those that are always possible.
        of_channels: Those that cut channels into shards.
        channels_fit: Whether the latter are possible; takes what the op takes.
    """

    lines: tuple[Line, ...]
    of_channels: tuple[Line, ...]
    channels_fit: Callable[..., bool]


@dataclass(frozen=True)
class Op:
    """An op that is linear in each of its one or two operands. Its tensors come first, its numbers follow.

    Attributes:
        name: Within the op namespace.
        fake: The result without its numbers, for the arguments of the op. Sizes may be symbols.
        gradients: For each operand its gradient. Takes the gradient of the result, the other operand if there is one
            (conjugated where it is complex, torch's convention), the shape of the operand and the op's numbers.
        vmap: The batching rule: takes the op, the size of the batch, which dimension of each argument is vmapped, and
            the arguments. The vmapped dimension of its result comes first.
        sharding: How the op acts on DTensors.
        bias: Whether a bias follows the operands, one number for each channel (dimension 1) of the result, or None.
        packed: Whether the library has a packed twin of the op.
        packed_gradients: The packed op that computes the gradients of both operands together, if there is one.
    """

    name: str
    fake: Callable[..., Tensor]
    gradients: tuple[Callable[..., Tensor], ...]
    vmap: Callable[..., tuple[Tensor, int]]
    sharding: Sharding
    bias: bool = False
    packed: bool = False
    packed_gradients: str | None = None

    @property
    def operands(self) -> int:
        """How many tensors the op is linear in."""
        return len(self.gradients)

    @property
    def tensors(self) -> int:
        """How many arguments are tensors; the bias among them may be None."""
        return self.operands + self.bias

    @property
    def overload(self) -> Callable[..., Tensor]:
        """What torch dispatches."""
        return getattr(namespace, self.name).default  # type: ignore[no-any-return]


RECORDS: dict[str, Op] = {}
"""Every op that was defined, by name."""

namespace = getattr(torch.ops, NAMESPACE)

set_workspace_limit: Callable[[int, int], None] = namespace.set_workspace_limit.default
set_tuning: Callable[[bool], None] = namespace.set_tuning.default
get_tuning: Callable[[], bool] = namespace.get_tuning.default
get_workspace_limit: Callable[[], list[int]] = namespace.get_workspace_limit.default
