"""Cases of the kernels for few channels, and how their results are checked."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cases import CASES, Case, channels_last, make_case
from computations import expected_of, operands

from .convolutions import compute

ENGINE = "stem"
ARRANGEMENTS: tuple[Callable[[Tensor], Tensor], ...] = (Tensor.contiguous, channels_last)


def stem(name: str, rank: int, in_channels: int = 3, out_channels: int = 16, **changes: Any) -> Case:
    return make_case(
        name, rank, in_channels=in_channels, out_channels=out_channels, **{"bias": True, "groups": 1} | changes
    )


# Tiles are of up to 128 positions and 64 rows (32 in double), steps of 16, 8 or 4 terms or positions.
_PADDED = {"kernel_size": (3, 3, 3), "padding": ((1, 1),) * 3}
STEMS = [
    # First layers of networks, on small images. With padding, pieces of lines begin before the image.
    stem(
        "seven_by_two",
        2,
        out_channels=70,
        kernel_size=(7, 7),
        stride=(2, 2),
        padding=((3, 3), (3, 3)),
        input_size=(14, 48),
    ),
    stem("patches_of_four", 2, out_channels=96, kernel_size=(4, 4), stride=(4, 4), input_size=(32, 40)),
    stem("three_by_two", 2, out_channels=24, **_PADDED, stride=(2, 2), input_size=(16, 23)),
    stem("speech", 1, 1, 24, kernel_size=(10,), stride=(5,), input_size=(720,)),
    stem("volume", 3, 3, 8, kernel_size=(2, 4, 4), stride=(2, 4, 4), input_size=(4, 12, 16)),
    # Rows of lines and of positions that are not whole pieces, and two channels to tell from their neighbours.
    stem("odd", 2, 2, 9, **_PADDED, dilation=(1, 2), input_size=(7, 19)),
    stem("four_channels", 2, 4, 16, **_PADDED, input_size=(5, 16)),
    stem("one_column", 2, 3, 8, kernel_size=(3, 1), padding=((1, 1), (0, 0)), input_size=(70, 1)),
    # Chunks of terms: whole ones, and a last one with fewer; in pieces and not.
    stem("patches_of_sixteen", 2, 3, 40, batch=1, kernel_size=(16, 16), stride=(16, 16), input_size=(48, 64)),
    stem("nineteen", 2, 2, 9, batch=1, kernel_size=(19, 19), padding=((9, 9), (9, 9)), input_size=(10, 20)),
    stem("long_window", 1, 1, 17, batch=1, kernel_size=(3001,), padding=((1500, 1500),), input_size=(150,)),
]
FEW = [case for case in CASES if case.groups == 1 and case.in_channels <= 4]
SITUATIONS = [*(dataclasses.replace(case, bias=True) for case in FEW), *STEMS]
NAMED = {case.name: case for case in SITUATIONS}
SOME = [NAMED[name] for name in ("seven_by_two-2d", "speech-1d", "volume-3d", "odd-2d", "nineteen-2d", "dilation-3d")]
PASSES = ["conv", "conv_weight_grad"]


def arrange(name: str, tensors: list[Tensor | None], first: Any, second: Any) -> tuple[list[Tensor | None], Any]:
    """The operands and the format of the result: the two tensors that are images are in those formats."""
    if name == "conv":
        return [first(tensors[0]), *tensors[1:]], second
    return [first(tensors[0]), second(tensors[1]), None], Tensor.contiguous


# No window reads the last row and the last column.
UNREAD = dataclasses.replace(
    NAMED["odd-2d"], padding=((0, 0), (0, 0)), stride=(2, 2), input_size=(8, 20), batch=1, bias=False
)


def check_infinite(name: str, emulated: Any = None) -> None:
    """Those sums are infinite, and none is NaN, that have an infinite element as a term."""
    for where in [(0, 0), (0, 18), (6, 0), (6, 18), (3, 9)]:
        tensors = operands(name, UNREAD, torch.float16, "cpu")
        for tensor in tensors[:2]:
            tensor.abs_().add_(1)
        image = tensors[PASSES.index(name)]
        image[(0, slice(None), *where)] = image[..., -1, :] = image[..., -1] = torch.inf
        exact, _ = expected_of(name, UNREAD, tensors)
        for first, second in itertools.product(ARRANGEMENTS, repeat=2):
            arranged, to_format = arrange(name, tensors, first, second)
            actual = compute(name, UNREAD, *arranged, to_format=to_format, emulated=emulated)
            wrong = (actual.isinf() != exact.isinf()) | actual.isnan()
            assert not wrong.any(), f"{int(wrong.sum())} elements are wrong"
