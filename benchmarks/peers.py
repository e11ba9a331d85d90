"""The implementations that are compared, as one table.

To add one: write its `Peer` and put it into `PEERS`. Nothing else changes.
"""

import importlib
import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import Case, Operands
from .problems import CONVOLUTION_PASSES, Problem

Thunk = Callable[[], Tensor]

UNFOLD_LIMIT_BYTES = 1 << 30
"""The column matrix that the "unfold" peer may make; above it the peer is left out."""


@dataclass(frozen=True)
class Peer:
    """One implementation.

    Attributes:
        name: What the command line and the results call it.
        title: What the report calls it.
        refusal: Says why a case is not for this peer, or None.
        prepare: Binds a case's operands; the call it returns does the whole work of the pass and nothing else.
    """

    name: str
    title: str
    refusal: Callable[[Case], str | None]
    prepare: Callable[[Case, Operands], Thunk]


def _never(case: Case) -> str | None:
    return None


# --- unfoldconv ---------------------------------------------------------------------------------------------------


def _prepare_ours(case: Case, operands: Operands) -> Thunk:
    import unfoldconv as uc

    ops = torch.ops.unfoldconv
    p = case.problem
    x, w, dy, columns = operands.input, operands.weight, operands.grad_output, operands.columns
    kernel, size = list(p.kernel_size), list(p.input_size)
    geometry = (list(p.stride), list(p.padding), list(p.padding), list(p.dilation))  # padding: low and high
    thunks: dict[str, Thunk] = {
        "forward": lambda: ops.conv.default(x, w, None, *geometry, p.groups),
        "grad_input": lambda: ops.conv_input_grad.default(dy, w, None, size, *geometry, p.groups),
        "grad_weight": lambda: ops.conv_weight_grad.default(dy, x, kernel, *geometry, p.groups),
        "unfold": lambda: uc.unfold(x, p.kernel_size, p.dilation, p.padding, p.stride),
        "fold": lambda: uc.fold(columns, p.input_size, p.kernel_size, p.dilation, p.padding, p.stride),
    }
    return thunks[case.pass_]


# --- torch's own op -----------------------------------------------------------------------------------------------

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _plane_sliding(p: Problem) -> dict[str, tuple[int, ...]]:
    """The window as F.unfold takes it; one axis is two of which the first has size 1."""
    lead = 2 - p.rank
    one, none = (1,) * lead, (0,) * lead
    return {
        "kernel_size": one + p.kernel_size,
        "dilation": one + p.dilation,
        "padding": none + p.padding,
        "stride": one + p.stride,
    }


def _plane_unfold(input: Tensor, p: Problem) -> Tensor:
    """F.unfold of one or two spatial axes."""
    return F.unfold(input.unsqueeze(2) if p.rank == 1 else input, **_plane_sliding(p))


def _plane_fold(columns: Tensor, p: Problem) -> Tensor:
    """F.fold into one or two spatial axes."""
    image = F.fold(columns, (1,) * (2 - p.rank) + p.input_size, **_plane_sliding(p))
    return image.squeeze(2) if p.rank == 1 else image


def _both_ends(p: Problem) -> list[int]:
    """The padding as F.pad takes it."""
    return [padding for padding in reversed(p.padding) for _ in range(2)]


def _volume_unfold(input: Tensor, p: Problem) -> Tensor:
    """What stands in for F.unfold of three spatial axes: a view of every patch of the padded input, copied."""
    padded = F.pad(input, _both_ends(p)).contiguous()
    batch, channel, *axes = padded.stride()
    taps = [step * dilation for step, dilation in zip(axes, p.dilation, strict=True)]
    positions = [step * stride for step, stride in zip(axes, p.stride, strict=True)]
    shape = (p.batch, p.in_channels, *p.kernel_size, *p.output_size)
    return padded.as_strided(shape, (batch, channel, *taps, *positions)).reshape(p.columns_shape)


def _volume_fold(columns: Tensor, p: Problem) -> Tensor:
    """What stands in for F.fold into three spatial axes: each tap's part of the columns added to a slice."""
    padded_size = [size + 2 * padding for size, padding in zip(p.input_size, p.padding, strict=True)]
    padded = columns.new_zeros(p.batch, p.in_channels, *padded_size)
    parts = columns.view(p.batch, p.in_channels, *p.kernel_size, *p.output_size)
    for tap in itertools.product(*map(range, p.kernel_size)):
        axes = zip(tap, p.dilation, p.stride, p.output_size, strict=True)
        read = [slice(t * d, t * d + (count - 1) * s + 1, s) for t, d, s, count in axes]
        padded[(..., *read)] += parts[(slice(None), slice(None), *tap)]
    return F.pad(padded, [-padding for padding in _both_ends(p)])


def _prepare_torch(case: Case, operands: Operands) -> Thunk:
    p = case.problem
    x, w, dy, columns = operands.input, operands.weight, operands.grad_output, operands.columns
    convolution = cast(Callable[..., Tensor], _CONVOLUTIONS[p.rank])
    backward = torch.ops.aten.convolution_backward.default
    geometry = (list(p.stride), list(p.padding), list(p.dilation))
    transposed = (False, [0] * p.rank)  # not transposed, hence no output padding
    unfold, fold = (_plane_unfold, _plane_fold) if p.rank < 3 else (_volume_unfold, _volume_fold)
    thunks: dict[str, Thunk] = {
        "forward": lambda: convolution(x, w, None, *geometry, p.groups),
        "grad_input": lambda: backward(dy, x, w, None, *geometry, *transposed, p.groups, [True, False, False])[0],
        "grad_weight": lambda: backward(dy, x, w, None, *geometry, *transposed, p.groups, [False, True, False])[1],
        "unfold": lambda: unfold(x, p),
        "fold": lambda: fold(columns, p),
    }
    return thunks[case.pass_]


# --- F.unfold and a matrix product --------------------------------------------------------------------------------


def _refuse_unfold(case: Case) -> str | None:
    if case.pass_ not in CONVOLUTION_PASSES:
        return "only convolutions can be made of F.unfold"
    if case.problem.rank != 2:
        return f"F.unfold must have 2 spatial axes, but got {case.problem.rank}"
    if case.columns_bytes > UNFOLD_LIMIT_BYTES:
        return f"columns must be at most {UNFOLD_LIMIT_BYTES} bytes, but got {case.columns_bytes}"
    return None


def _prepare_unfold(case: Case, operands: Operands) -> Thunk:
    """The textbook convolution, with the whole column matrix in memory.

    With groups = G, K = taps * in_channels / G and L = positions, columns is (N, G, K, L), the weight (G, O, K) and
    grad_output (N, G, O, L):

        forward:      output = weight @ columns
        grad_input:   F.fold(weight^T @ grad_output)
        grad_weight:  sum over the batch of grad_output @ columns^T
    """
    p = case.problem
    x, w, dy = operands.input, operands.weight, operands.grad_output
    sliding = {"dilation": p.dilation, "padding": p.padding, "stride": p.stride}
    batch, rows, positions = p.columns_shape
    columns_shape = (batch, p.groups, rows // p.groups, positions)
    output_shape = (batch, p.groups, p.out_channels // p.groups, positions)
    weight_shape = (p.groups, p.out_channels // p.groups, rows // p.groups)

    def forward() -> Tensor:
        columns = F.unfold(x, p.kernel_size, **sliding).view(columns_shape)
        return torch.matmul(w.reshape(weight_shape), columns).reshape(p.output_shape)

    def grad_input() -> Tensor:
        columns = torch.matmul(w.reshape(weight_shape).mT, dy.reshape(output_shape))
        return F.fold(columns.reshape(p.columns_shape), p.input_size, p.kernel_size, **sliding)

    def grad_weight() -> Tensor:
        columns = F.unfold(x, p.kernel_size, **sliding).view(columns_shape)
        return torch.matmul(dy.reshape(output_shape), columns.mT).sum(0).view(p.weight_shape)

    return {"forward": forward, "grad_input": grad_input, "grad_weight": grad_weight}[case.pass_]


# --- the unfoldNd package, if it is installed -------------------------------------------------------------------------


def _refuse_unfoldnd(case: Case) -> str | None:
    if case.pass_ in CONVOLUTION_PASSES:
        return "unfoldNd only unfolds and folds"
    if importlib.util.find_spec("unfoldNd") is None:
        return "unfoldNd is not installed"
    if case.columns_bytes > UNFOLD_LIMIT_BYTES:
        return f"columns must be at most {UNFOLD_LIMIT_BYTES} bytes, but got {case.columns_bytes}"
    return None


def _prepare_unfoldnd(case: Case, operands: Operands) -> Thunk:
    package: Any = importlib.import_module("unfoldNd")
    p = case.problem
    sliding = {"dilation": p.dilation, "padding": p.padding, "stride": p.stride}
    if case.pass_ == "unfold":
        return lambda: cast(Tensor, package.unfoldNd(operands.input, p.kernel_size, **sliding))
    return lambda: cast(Tensor, package.foldNd(operands.columns, p.input_size, p.kernel_size, **sliding))


OURS = Peer("unfoldconv", "unfoldconv", _never, _prepare_ours)
TORCH = Peer("torch", "torch", _never, _prepare_torch)
UNFOLD = Peer("unfold", "unfold+matmul", _refuse_unfold, _prepare_unfold)
UNFOLDND = Peer("unfoldnd", "unfoldNd", _refuse_unfoldnd, _prepare_unfoldnd)

PEERS = {peer.name: peer for peer in (TORCH, UNFOLD, UNFOLDND)}
"""What unfoldconv is compared with, in the order of the report. The first is what errors are judged by."""
