"""Convolution of an image in slabs, one per rank, is the convolution of the whole image, and so are its gradients."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import unfoldconv as uc
from ranks import Ranks

RANKS = 4


@dataclass(frozen=True)
class Case:
    slabs: tuple[int, ...]
    kernel_size: tuple[int, ...]
    axis: int = 0
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    bias: bool = True

    @property
    def window(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def size(self) -> list[int]:
        size = [7, 6, 5][: len(self.kernel_size)]
        size[self.axis] = sum(self.slabs)
        return size


CASES = {
    "even": Case((3, 3, 3, 3), (3, 3), padding=1),
    "no halo": Case((3, 2, 3, 3), (1, 1)),
    "no padding": Case((4, 3, 2, 5), (4, 2)),
    "last axis": Case((3, 4, 2, 3), (3, 3), axis=1, padding="same"),
    "stride": Case((5, 4, 2, 6), (3, 2), stride=2, padding=1),
    "stride beyond the kernel": Case((5, 4, 2, 6), (2, 2), stride=(4, 1)),
    "dilation": Case((4, 5, 3, 4), (3, 2), dilation=(2, 3), padding=((2, 1), (0, 3))),
    "causal": Case((4, 2, 5, 3), (4, 3), padding=((3, 0), (1, 1))),
    "halo beyond neighbours": Case((2, 1, 1, 3), (5, 3), padding="same"),
    "window larger than the slabs": Case((1, 1, 1, 1), (4, 1), padding=((2, 1), (0, 0))),
    "empty slabs": Case((0, 5, 0, 4), (3, 3), padding=1),
    "all in the first": Case((9, 0, 0, 0), (3, 3), padding=1),
    "all in the last": Case((0, 0, 0, 6), (3, 3), stride=2),
    "empty outputs": Case((5, 2, 2, 1), (8, 2)),
    "positions beyond the image": Case((2, 2, 1, 1), (2, 1), padding=((0, 7), (0, 0))),
    "positions before the image": Case((2, 1, 1, 2), (3, 1), padding=((9, 0), (0, 0)), stride=2),
    "groups": Case((3, 4, 2, 3), (3, 2), padding="same", stride=2, groups=2, bias=False),
    "signal": Case((6, 7, 5, 8), (5,), stride=3, dilation=2, padding=4),
    "volume": Case((3, 4, 2, 3), (3, 2, 2), padding=((1, 1), (0, 1), (0, 0)), stride=(2, 1, 2), groups=2),
    "depth of a volume": Case((2, 2, 2, 1), (2, 3, 2), axis=2, dilation=(1, 1, 2), padding=1),
}


def bounds(sizes: tuple[int, ...]) -> slice:
    """What this rank holds."""
    rank = dist.get_rank()
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def output_slabs(case: Case, positions: int) -> tuple[int, ...]:
    """How many positions each rank gets, by the rule that the documentation states, position by position."""
    stride = case.stride[case.axis] if isinstance(case.stride, tuple) else case.stride
    counts = [0] * RANKS
    for position in range(positions):
        holders = [rank for rank in range(RANKS) if sum(case.slabs[: rank + 1]) > position * stride]
        counts[holders[0] if holders else RANKS - 1] += 1
    return tuple(counts)


def operands(case: Case) -> list[Tensor]:
    shapes = [(2, 4, *case.size), (6, 4 // case.groups, *case.kernel_size), *([(6,)] if case.bias else [])]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def derivatives(
    conv: Callable[..., Tensor], inputs: list[Tensor], cotangent: Tensor, tangents: list[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The output, its gradients, and the gradients of those, in the inputs and in the cotangent."""
    leaves = [tensor.clone().requires_grad_() for tensor in (*inputs, cotangent)]
    output = conv(*leaves[:-1])
    first = torch.autograd.grad(output, leaves[:-1], leaves[-1], create_graph=True)
    total = sum((grad * tangent).sum() for grad, tangent in zip(first, tangents, strict=True))
    second = torch.autograd.grad(total, [leaves[0], leaves[1], leaves[-1]])
    return output, list(first), list(second)


def check(name: str) -> None:
    case = CASES[name]
    rank = len(case.kernel_size)
    dim = 2 + case.axis
    inputs = operands(case)
    tangents = [torch.randn_like(tensor) for tensor in inputs]

    def whole_conv(*tensors: Tensor) -> Tensor:
        return getattr(uc, f"conv{rank}d")(*tensors, **case.window)

    def slab_conv(*tensors: Tensor) -> Tensor:
        return getattr(uc.distributed, f"conv{rank}d")(*tensors, **case.window, axis=case.axis)

    cotangent = torch.randn_like(whole_conv(*inputs))
    output, first, second = derivatives(whole_conv, inputs, cotangent, tangents)

    held, computed = bounds(case.slabs), bounds(output_slabs(case, output.shape[dim]))

    def cut(tensor: Tensor, part: slice) -> Tensor:
        return tensor[(slice(None),) * dim + (part,)].clone()

    got = derivatives(
        slab_conv,
        [cut(inputs[0], held), *inputs[1:]],
        cut(cotangent, computed),
        [cut(tangents[0], held), *tangents[1:]],
    )
    for share in (*got[1][1:], got[2][1]):  # of weight and bias
        dist.all_reduce(share)
    expected = [cut(output, computed), cut(first[0], held), *first[1:]]
    expected += [cut(second[0], held), second[1], cut(second[2], computed)]
    for index, (value, wanted) in enumerate(zip([got[0], *got[1], *got[2]], expected, strict=True)):
        assert value.shape == wanted.shape, f"{index}: {value.shape} != {wanted.shape}"
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-10, msg=lambda m, index=index: f"{index}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_slabs_are_the_whole_image(ranks: Ranks, name: str) -> None:
    ranks.run(check, name)


def check_formats() -> None:
    """Without a batch, in channels_last and in other dtypes; torch.autocast acts as it does on the whole image."""
    held = bounds((3, 1, 2, 2))
    x, w, b = torch.randn(4, 8, 5), torch.randn(6, 4, 3, 3), torch.randn(6)
    output = uc.distributed.conv2d(x[:, held], w, b, padding=1)
    torch.testing.assert_close(output, uc.conv2d(x, w, b, padding=1)[:, held])

    images = torch.randn(2, 4, 8, 5).to(memory_format=torch.channels_last)
    output = uc.distributed.conv2d(images[:, :, held], w, padding=1)
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, uc.conv2d(images, w, padding=1)[:, :, held])

    for dtype in (torch.bfloat16, torch.complex128, torch.int32):
        values, weight = ((10 * tensor.double()).to(dtype) for tensor in (x, w))
        output = uc.distributed.conv2d(values[:, held], weight, padding=1)
        torch.testing.assert_close(output, uc.conv2d(values, weight, padding=1)[:, held])

    z, u = x.to(torch.complex128), w.to(torch.complex128).requires_grad_()
    z = (z * (1 + 2j)).conj().requires_grad_()
    uc.distributed.conv2d(z[:, held].conj(), u, padding=1).abs().sum().backward()
    (expected,) = torch.autograd.grad(uc.conv2d(z.conj(), u, padding=1).abs().sum(), z)
    torch.testing.assert_close(z.grad[:, held], expected[:, held])

    one = torch.randn(1, 8, 5, dtype=torch.complex128)  # rows of one channel are contiguous, and sent as they are
    output = uc.distributed.conv2d(one.conj()[:, held], u[:, :1], padding=1)
    torch.testing.assert_close(output, uc.conv2d(one.conj(), u[:, :1], padding=1)[:, held])

    with torch.autocast("cpu", torch.bfloat16):
        output = uc.distributed.conv2d(x[:, held], w, padding=1)
        torch.testing.assert_close(output, uc.conv2d(x, w, padding=1)[:, held])
    assert output.dtype == torch.bfloat16


def test_formats(ranks: Ranks) -> None:
    ranks.run(check_formats)


def check_group() -> None:
    """The slabs of some ranks, in an order of their own. The others take no part."""
    group = dist.new_group([2, 0], sort_ranks=False)
    x, w = torch.randn(1, 2, 7), torch.randn(2, 2, 3)
    if dist.get_rank() in (0, 2):
        held = (slice(0, 4), slice(4, 7))[dist.get_rank(group)]
        output = uc.distributed.conv1d(x[:, :, held], w, padding=1, process_group=group)
        torch.testing.assert_close(output, uc.conv1d(x, w, padding=1)[:, :, held])


def test_a_group_of_some_ranks(ranks: Ranks) -> None:
    ranks.run(check_group)


class Net(nn.Module):
    """Two layers, whose convolution is given: that of whole images or that of slabs."""

    def __init__(self, conv: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv = conv
        self.first, self.second = uc.Conv2d(3, 6, 3).double(), uc.Conv2d(6, 4, 5, bias=False).double()

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images, self.first.weight, self.first.bias, stride=2, padding=1)
        return self.conv(nn.functional.silu(features), self.second.weight, padding="same")


def check_training() -> None:
    """DistributedDataParallel takes the mean of the gradients, of which the documentation warns."""
    torch.manual_seed(1)
    whole = Net(uc.conv2d)
    slabs = Net(uc.distributed.conv2d)
    slabs.load_state_dict(whole.state_dict())
    parallel = DistributedDataParallel(slabs)
    images = torch.randn(2, 3, 14, 5, dtype=torch.float64)
    own_images = images[:, :, bounds((4, 2, 5, 3))]
    for _ in range(3):
        for model, batch, factor in ((whole, images, 1), (parallel, own_images, RANKS)):
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            optimizer.zero_grad()
            (model(batch).square().sum() * factor).backward()
            optimizer.step()
    for parameter, reference in zip(slabs.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad, rtol=0, atol=1e-10)
        torch.testing.assert_close(parameter, reference, rtol=0, atol=1e-10)


def test_training_with_ddp(ranks: Ranks) -> None:
    ranks.run(check_training)


def test_a_torch_without_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"torch\.distributed must be available"):
        uc.distributed.conv1d(torch.randn(1, 1, 3), torch.randn(1, 1, 1))


# --- bad input --------------------------------------------------------------------------------------------------------


def check_refused(message: str, arguments: dict[str, Any]) -> None:
    """Every rank refuses the call, and none has left anything behind that the next call would take for its own."""
    slab, w = torch.randn(1, 4, 2, 5), torch.randn(6, 4, 3, 3)
    with pytest.raises(uc.GeometryError, match=message):
        uc.distributed.conv2d(slab, w, **arguments)
    assert uc.distributed.conv2d(slab, w, padding=1).shape == (1, 6, 2, 5)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("stride must be positive", {"stride": (0, 1)}),
        ("padding must be non-negative", {"padding": -1}),
        ("padding must be 'same', 'valid'", {"padding": "full"}),
        ("to have 8 channels", {"groups": 2}),
        ("kernel must fit into the padded input .* got span 9 .* for 8 ", {"dilation": (4, 1)}),
        ("bias", {"bias": torch.zeros(5)}),
        ("axis must be one of the 2 spatial axes, counted from 0, but got 2", {"axis": 2}),
        ("axis must be one of", {"axis": -1}),
    ],
)
def test_refused_on_every_rank(ranks: Ranks, message: str, arguments: dict[str, Any]) -> None:
    ranks.run(check_refused, message, arguments)


def check_disagreement(what: str) -> None:
    odd = dist.get_rank() == 2
    slab, w = torch.randn(1, 5 if odd and what == "channels" else 4, 2, 5), torch.randn(6, 4, 3, 3)
    slab.requires_grad_(odd and what == "requires_grad")
    stride = 2 if odd and what == "stride" else 1
    with pytest.raises(uc.GeometryError, match=r"must be the same on every rank.* others on rank 2 than on rank 0"):
        uc.distributed.conv2d(slab, w, stride=stride, padding=1)


@pytest.mark.parametrize("what", ["channels", "stride", "requires_grad"])
def test_ranks_that_disagree_all_raise(ranks: Ranks, what: str) -> None:
    ranks.run(check_disagreement, what)


def check_death() -> None:
    group = dist.new_group(timeout=timedelta(seconds=1))
    slab, w = torch.randn(1, 4, 2, 5), torch.randn(6, 4, 3, 3)
    uc.distributed.conv2d(slab, w, padding=1, process_group=group)
    if dist.get_rank() == 1:
        os._exit(1)
    with pytest.raises(RuntimeError, match=r"(?i)connection|timed out|timeout"):
        uc.distributed.conv2d(slab, w, padding=1, process_group=group)


def test_a_rank_that_dies_leaves_the_others_with_an_error_of_torch(ranks: Ranks) -> None:
    with pytest.raises(AssertionError) as error:
        ranks.run(check_death)
    assert str(error.value) == "\nrank 0: passed\nrank 1: the process has died\nrank 2: passed\nrank 3: passed"
