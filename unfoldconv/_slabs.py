"""How the slabs of an image lie on the ranks of a process group, and how elements move between them.

Along the axis that is divided a rank's elements are an interval of the whole image, [start, stop).
"""

import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.autograd import Function

from ._geometry import GeometryError, Window, span_of

Interval = tuple[int, int]
Intervals = tuple[Interval, ...]  # one per rank


class Plan(NamedTuple):
    """Who holds what of the image, what each rank's windows read of it, how far they reach beyond, and their number."""

    held: Intervals
    read: Intervals
    padding: Intervals  # (low, high)
    positions: tuple[int, ...]


def agreed_sizes(call: object, size: int, device: torch.device, group: Any) -> list[int]:
    """The sizes of all slabs.

    Raises:
        GeometryError: on every rank, where `call`, which describes all other arguments, is not the same on all.
    """
    mine = torch.tensor([size, zlib.crc32(repr(call).encode())], device=device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    sizes, calls = zip(*torch.stack(everyone).tolist(), strict=True)
    for rank, other in enumerate(calls):
        if other != calls[0]:
            raise GeometryError(
                f"arguments must be the same on every rank, except the size of the slab, but got others on rank {rank} "
                f"than on rank 0; on this one: {call}"
            )
    return list(sizes)


def plan_of(sizes: Sequence[int], positions: int, kernel: int, axis: int, window: Window) -> Plan:
    """The plan for `positions` of a window over slabs of these sizes."""
    step, low = window.stride[axis], window.padding_low[axis]
    span = span_of(kernel, window.dilation[axis])
    bounds = [0, *itertools.accumulate(sizes)]
    whole = bounds[-1]
    # Position p lies where element p * step is held, and where there is none, with the last rank.
    firsts = [min(-(-bound // step), positions) for bound in bounds[:-1]] + [positions]
    read, padding = [], []
    for first, stop in itertools.pairwise(firsts):
        if first == stop:
            read.append((0, 0))
            padding.append((span, 0))  # the op knows no empty output: one position, of nothing but padding
            continue
        begin, end = first * step - low, (stop - 1) * step - low + span
        inside = min(max(begin, 0), whole), min(max(end, 0), whole)
        read.append(inside)
        padding.append((inside[0] - begin, end - inside[1]) if inside[0] < inside[1] else (end - begin, 0))
    counts = tuple([stop - first for first, stop in itertools.pairwise(firsts)])
    return Plan(tuple(itertools.pairwise(bounds)), tuple(read), tuple(padding), counts)


def _overlap(first: Interval, second: Interval) -> Interval:
    start, stop = max(first[0], second[0]), min(first[1], second[1])
    return start, max(start, stop)


def _part(tensor: Tensor, dim: int, origin: int, interval: Interval) -> Tensor:
    return tensor.narrow(dim, interval[0] - origin, interval[1] - interval[0])


class _Move(Function):
    """From a tensor that is `source[rank]` of the image on each rank to one that is `target[rank]`.

    What several ranks hold is added up, always in the order of the ranks. So the adjoint is the way back.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int, source: Intervals, target: Intervals, group: Any) -> Tensor:
        ctx.way_back = (dim, target, source, group)
        rank = dist.get_rank(group)
        here, there = source[rank], target[rank]
        sizes = list(tensor.shape)
        operations, pieces = [], []
        for peer in range(len(source)):
            sent, received = _overlap(here, target[peer]), _overlap(there, source[peer])
            if sent[0] < sent[1] and peer != rank:
                piece = _part(tensor, dim, here[0], sent).resolve_conj().resolve_neg().contiguous()
                operations.append(dist.P2POp(dist.isend, piece, group=group, group_peer=peer))
            if received[0] < received[1]:
                if peer == rank:
                    piece = _part(tensor, dim, here[0], received)
                else:
                    sizes[dim] = received[1] - received[0]
                    piece = tensor.new_empty(sizes)
                    operations.append(dist.P2POp(dist.irecv, piece, group=group, group_peer=peer))
                pieces.append((received, piece))
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        sizes[dim] = there[1] - there[0]
        memory_format = suggest_memory_format(tensor)
        result = torch.empty(sizes, dtype=tensor.dtype, device=tensor.device, memory_format=memory_format).zero_()
        for interval, piece in pieces:
            _part(result, dim, there[0], interval).add_(piece)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return move(*grads, *ctx.way_back), None, None, None, None


move: Callable[..., Tensor] = _Move.apply
"""(tensor, dim, source, target, group) -> the target's part, see `_Move`."""
