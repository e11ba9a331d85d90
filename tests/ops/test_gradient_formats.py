"""The memory formats of gradients: those of torch where a parameter or an input keeps them, see README.md's limits."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import unfoldconv as uc
from cases import channels_last

ARRANGEMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": channels_last,
    "permuted": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
}
SIZES = {2: ((2, 4, 6, 5), (4, 4, 3, 2)), 3: ((2, 4, 6, 5, 4), (4, 4, 3, 2, 2))}


def arranged(rank: int, dtype: torch.dtype, *names: str) -> list[Tensor]:
    """An image and a weight that require gradients."""
    return [
        ARRANGEMENTS[name](torch.randn(shape).to(dtype)).requires_grad_()
        for name, shape in zip(names, SIZES[rank], strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
def test_what_backward_leaves_is_as_torchs(rank: int, transposed: bool, dtype: torch.dtype) -> None:
    """The format of the tensor itself, for each combination of those of image, weight and gradient."""
    name = f"conv{'_transpose' * transposed}{rank}d"
    for names in itertools.product(ARRANGEMENTS, repeat=3):
        strides = []
        for functions in (uc, F):
            leaves = arranged(rank, dtype, *names[:2])
            output = getattr(functions, name)(*leaves)
            output.backward(ARRANGEMENTS[names[2]](torch.ones_like(output)))
            strides.append([leaf.grad.stride() for leaf in leaves])
            assert strides[-1] == [leaf.stride() for leaf in leaves]
        assert strides[0] == strides[1], names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_themselves(transposed: bool, dtype: torch.dtype) -> None:
    """Of the image as torch's in a network of one format; of the weight always contiguous."""
    function = "conv_transpose2d" if transposed else "conv2d"
    for images, weights in itertools.product(("contiguous", "channels_last"), repeat=2):
        found = []
        for functions in (uc, F):
            leaves = arranged(2, dtype, images, weights)
            output = getattr(functions, function)(*leaves)
            found.append(torch.autograd.grad(output, leaves, torch.ones_like(output)))  # in the output's format
        assert found[0][0].stride() == found[1][0].stride(), (images, weights)
        assert found[0][1].is_contiguous()
