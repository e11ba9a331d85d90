"""Every differentiable op with small arguments, for the tests of derivatives and of compilation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import unfoldconv.functional as uf
from unfoldconv import _conv_ops


@dataclass(frozen=True)
class Op:
    """A function of tensors only, and shapes of its arguments."""

    name: str
    function: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]

    def arguments(self, dtype: torch.dtype = torch.float64, requires_grad: bool = True) -> tuple[Tensor, ...]:
        return tuple(torch.randn(shape, dtype=dtype, requires_grad=requires_grad) for shape in self.shapes)


def _ops_of(rank: int) -> list[Op]:
    """Geometry with everything: stride, dilation, padding that differs from low to high, groups, bias."""
    conv = (uf.conv1d, uf.conv2d, uf.conv3d)[rank - 1]
    conv_transpose = (uf.conv_transpose1d, uf.conv_transpose2d, uf.conv_transpose3d)[rank - 1]
    size, kernel = (5, 4, 3)[:rank], (3, 2, 1)[:rank]
    window = {"stride": (2, 1, 1)[:rank], "padding": ((1, 0), (1, 2), (0, 0))[:rank], "dilation": (1, 2, 1)[:rank]}
    positions = (2, 5, 3)[:rank]
    low, high = zip(*window["padding"], strict=True)
    op_window = (window["stride"], low, high, window["dilation"], 2)
    taps = int(torch.tensor(kernel).prod())
    cells = int(torch.tensor(positions).prod())
    return [
        Op(f"conv{rank}d", lambda x, w, b: conv(x, w, b, groups=2, **window), ((2, 2, *size), (4, 1, *kernel), (4,))),
        Op(
            f"conv_transpose{rank}d",
            lambda x, w, b: conv_transpose(x, w, b, groups=2, **window),
            ((2, 4, *positions), (4, 1, *kernel), (2,)),
        ),
        Op(
            f"conv_weight_grad{rank}d",
            lambda y, x: _conv_ops.conv_weight_grad(y, x, kernel, *op_window),
            ((2, 4, *positions), (2, 2, *size)),
        ),
        Op(f"unfold{rank}d", lambda x: uf.unfold(x, kernel, **window), ((2, 2, *size),)),
        Op(f"fold{rank}d", lambda c: uf.fold(c, size, kernel, **window), ((2, 2 * taps, cells),)),
        Op(
            f"fold_mean{rank}d",
            lambda c: uf.fold(c, size, kernel, reduction="mean", **window),
            ((2, 2 * taps, cells),),
        ),
        Op(f"unfold_transpose{rank}d", lambda x: uf.unfold_transpose(x, kernel, **window), ((2, 2, *positions),)),
    ]


OPS = [op for rank in (1, 2, 3) for op in _ops_of(rank)]
OPS_2D = [op for op in OPS if op.name.endswith("2d")]
