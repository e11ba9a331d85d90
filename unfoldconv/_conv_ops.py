"""The convolution and its two gradients, each an op: the set is closed under differentiation.

    conv(x, w)              d/dx: conv_input_grad(g, w)    d/dw: conv_weight_grad(g, x)
    conv_input_grad(y, w)   d/dy: conv(g, w)               d/dw: conv_weight_grad(y, g)
    conv_weight_grad(y, x)  d/dy: conv(x, g)               d/dx: conv_input_grad(y, g)

`window` is stride, padding_low, padding_high, dilation and groups.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from . import _checks as checks
from ._autograd import define
from ._geometry import check_rank
from ._ops import FIRST, FULL, SECOND, SUM, Op, Sharding
from ._vmap import front, into_channels, join, out_of_channels, over_batch, split, with_bias

Call = Callable[..., Tensor]
Batched = tuple[Tensor, int]

_WITHOUT_3D_FORMAT = (torch.float64, *checks.INTEGERS)


def _result(sizes: Sequence[int], first: Tensor, second: Tensor) -> Tensor:
    """An empty result, in the memory format of `empty_result` in csrc/binding/memory_format.h."""
    checks.check_bytes("output", sizes, first.itemsize)
    channels_last = (torch.channels_last, torch.channels_last_3d)
    formats = [suggest_memory_format(operand) for operand in (first, second)]
    memory_format = next((f for f in formats if f in channels_last), torch.contiguous_format)
    if len(sizes) == 5 and first.dtype in _WITHOUT_3D_FORMAT:
        memory_format = torch.contiguous_format
    if first.device.type == "cuda" and first.dtype == torch.float64:
        memory_format = torch.contiguous_format
    return torch.empty(sizes, dtype=first.dtype, device=first.device, memory_format=memory_format)


def _groups_are_one(*arguments: Any) -> bool:
    """With several, a rank that has some channels would need some of the groups, but no placement changes `groups`."""
    return bool(arguments[-1] == 1)


# The lines of both convolutions: output, input, weight, bias. The bias of a partial result is partial, lest it be added
# once per rank.
_WHOLE_CHANNELS = (
    (FULL, FULL, FULL, FULL),
    (FIRST, FIRST, FULL, FULL),
    (SUM, SUM, FULL, SUM),
    (SUM, FULL, SUM, SUM),
)


# --- y = W im2col(x): input (N, C, *I), weight (O, C / groups, *K), bias (O) -> (N, O, *P) ----------------------------


def _fake_conv(input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    *lists, groups = arguments
    checks.check_dim("weight", weight, len(lists[0]) + 2, checks.CONV_WEIGHT)
    window = checks.window_of_op(weight.shape[2:], lists)
    checks.check_operands("input", input, "weight", weight, len(window.stride))
    checks.check_groups("out_channels (weight's dimension 0)", weight.shape[0], groups)
    channels = checks.channels_of_groups(weight.shape[1], groups)
    checks.check_channels(input, weight, channels, f"groups={groups}")
    checks.check_bias(bias, input, weight.shape[0])
    positions = checks.positions_of(input.shape[2:], weight.shape[2:], window)
    return _result((input.shape[0], weight.shape[0], *positions), input, weight)


def _vmap_conv(
    op: Call, batch: int, in_dims: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *window: Any
) -> Batched:
    input_dim, weight_dim, bias_dim = in_dims[:3]
    *window_only, groups = window
    if weight_dim is None and input_dim is None:
        result = op(input, weight, None, *window).unsqueeze(0).expand(batch, *(-1,) * input.dim())
    elif weight_dim is None:
        result, _ = over_batch(op, batch, in_dims, input, weight, None, *window)
    elif input_dim is None:
        outputs = front(weight, weight_dim)
        stacked = join(split(outputs, 1, groups, outputs.shape[1] // groups).movedim(0, 1), 0, 3)
        result = out_of_channels(op(input, stacked, None, *window), 1, batch, groups)
    else:
        images = join(front(input, input_dim).movedim(0, 1), 1, 2)
        weights = join(front(weight, weight_dim), 0, 2)
        result = op(images, weights, None, *window_only, batch * groups)
        result = split(result, 1, batch, result.shape[1] // batch).movedim(1, 0)
    return with_bias(result, bias, bias_dim), 0


conv: Call = define(
    Op(
        "conv",
        _fake_conv,
        gradients=(
            lambda grad, weight, shape, window: conv_input_grad(grad, weight, None, shape[2:], *window),
            lambda grad, input, shape, window: conv_weight_grad(grad, input, shape[2:], *window),
        ),
        vmap=_vmap_conv,
        sharding=Sharding(
            _WHOLE_CHANNELS,
            of_channels=((SECOND, FULL, FIRST, FIRST), (SUM, SECOND, SECOND, SUM)),
            channels_fit=_groups_are_one,
        ),
        bias=True,
        packed=True,
        packed_gradients="conv_backward",
    )
)


# --- the adjoint of conv in its input: grad_output (N, O, *P), weight -> (N, C, *input_size), plus bias (C) -----------


def _fake_conv_input_grad(
    grad_output: Tensor, weight: Tensor, bias: Tensor | None, input_size: Sequence[int], *arguments: Any
) -> Tensor:
    *lists, groups = arguments
    checks.check_dim("weight", weight, len(lists[0]) + 2, checks.TRANSPOSED_WEIGHT)
    window = checks.window_of_op(weight.shape[2:], lists)
    checks.check_operands("input", grad_output, "weight", weight, len(window.stride))
    check_rank("input_size", input_size, len(window.stride))
    checks.check_groups("in_channels (weight's dimension 0)", weight.shape[0], groups)
    checks.check_channels(grad_output, weight, weight.shape[0], "transposed=1")
    channels = checks.channels_of_groups(weight.shape[1], groups)
    checks.check_bias(bias, grad_output, channels)
    checks.check_positions(grad_output, checks.positions_of(input_size, weight.shape[2:], window))
    return _result((grad_output.shape[0], channels, *input_size), grad_output, weight)


def _vmap_conv_input_grad(
    op: Call,
    batch: int,
    in_dims: Any,
    grad_output: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_size: Any,
    *window: Any,
) -> Batched:
    grad_dim, weight_dim, bias_dim = in_dims[:3]
    *window_only, groups = window
    if weight_dim is None and grad_dim is None:
        result = op(grad_output, weight, None, input_size, *window)
        result = result.unsqueeze(0).expand(batch, *(-1,) * result.dim())
    elif weight_dim is None:
        result, _ = over_batch(op, batch, in_dims, grad_output, weight, None, input_size, *window)
    elif grad_dim is None:
        stacked = join(front(weight, weight_dim).movedim(0, 1), 1, 2)  # (O, B * C / groups, *K)
        result = out_of_channels(op(grad_output, stacked, None, input_size, *window), 1, batch, groups)
    else:
        grads = join(front(grad_output, grad_dim).movedim(0, 1), 1, 2)
        weights = join(front(weight, weight_dim), 0, 2)
        result = op(grads, weights, None, input_size, *window_only, batch * groups)
        result = split(result, 1, batch, result.shape[1] // batch).movedim(1, 0)
    return with_bias(result, bias, bias_dim), 0


conv_input_grad: Call = define(
    Op(
        "conv_input_grad",
        _fake_conv_input_grad,
        gradients=(
            lambda grad, weight, shape, numbers: conv(grad, weight, None, *numbers[1:]),
            lambda grad, grad_output, shape, numbers: conv_weight_grad(grad_output, grad, shape[2:], *numbers[1:]),
        ),
        vmap=_vmap_conv_input_grad,
        sharding=Sharding(
            _WHOLE_CHANNELS,
            of_channels=((SECOND, FULL, SECOND, FIRST), (SUM, SECOND, FIRST, SUM)),
            channels_fit=_groups_are_one,
        ),
        bias=True,
        packed=True,
    )
)


# --- the adjoint of conv in its weight: grad_output (N, O, *P), input (N, C, *I) -> (O, C / groups, *kernel_size) -----


def _fake_conv_weight_grad(grad_output: Tensor, input: Tensor, kernel_size: Sequence[int], *arguments: Any) -> Tensor:
    *lists, groups = arguments
    window = checks.window_of_op(kernel_size, lists)
    checks.check_operands("grad_output", grad_output, "input", input, len(kernel_size))
    checks.check_batch(grad_output, input)
    checks.check_groups("out_channels (grad_output's dimension 1)", grad_output.shape[1], groups)
    checks.check_groups("in_channels (input's dimension 1)", input.shape[1], groups)
    checks.check_positions(grad_output, checks.positions_of(input.shape[2:], kernel_size, window))
    sizes = (grad_output.shape[1], input.shape[1] // groups, *kernel_size)
    checks.check_bytes("grad_weight", sizes, input.itemsize)
    return input.new_empty(sizes)


def _vmap_conv_weight_grad(
    op: Call, batch: int, in_dims: Any, grad_output: Tensor, input: Tensor, kernel_size: Any, *window: Any
) -> Batched:
    grad_dim, input_dim = in_dims[:2]
    *window_only, groups = window
    if input_dim is None:
        stacked = into_channels(grad_output, grad_dim, groups)
        result = out_of_channels(op(stacked, input, kernel_size, *window), 0, batch, groups)
    elif grad_dim is None:
        result = op(grad_output, into_channels(input, input_dim, groups), kernel_size, *window)
        result = split(result, 1, batch, result.shape[1] // batch).movedim(1, 0)
    else:
        grads = join(front(grad_output, grad_dim).movedim(0, 1), 1, 2)
        images = join(front(input, input_dim).movedim(0, 1), 1, 2)
        result = op(grads, images, kernel_size, *window_only, batch * groups)
        result = split(result, 0, batch, result.shape[0] // batch)
    return result, 0


conv_weight_grad: Call = define(
    Op(
        "conv_weight_grad",
        _fake_conv_weight_grad,
        gradients=(
            lambda grad, input, shape, numbers: conv(input, grad, None, *numbers[1:]),
            lambda grad, grad_output, shape, numbers: conv_input_grad(grad_output, grad, None, shape[2:], *numbers[1:]),
        ),
        vmap=_vmap_conv_weight_grad,
        sharding=Sharding(
            ((FULL, FULL, FULL), (SUM, FIRST, FIRST), (SUM, SUM, FULL), (SUM, FULL, SUM)),
            of_channels=((FIRST, SECOND, FULL), (SECOND, FULL, SECOND)),
            channels_fit=_groups_are_one,
        ),
        packed=True,
    )
)
