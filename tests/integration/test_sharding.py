"""The ops on DTensors over two ranks: for every placement of the operands the result and the gradients are those of
whole tensors, and the work is shared where it can be.
"""

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import unfoldconv as uc
from ranks import Ranks

FULL, SUM, FIRST, SECOND = Replicate(), Partial(), Shard(0), Shard(1)
PLACEMENTS = (FULL, SUM, FIRST, SECOND)


def mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def placed(tensor: Tensor, placement: Placement) -> DTensor:
    """A leaf that stands for the tensor. A partial one is a sum of terms that differ from rank to rank."""
    if placement != SUM:
        return distribute_tensor(tensor.detach(), mesh(), [placement], src_data_rank=None).requires_grad_()
    rest = torch.randn(tensor.shape, dtype=tensor.dtype, generator=torch.Generator().manual_seed(1))
    term = (
        rest if dist.get_rank() == 0 else (tensor.detach() - rest if dist.get_rank() == 1 else torch.zeros_like(rest))
    )
    return DTensor.from_local(term, mesh(), [SUM], run_check=False).requires_grad_()


# Three images and odd numbers of channels, so that shards differ in size.
SHAPES = {"x": (3, 3, 7, 6), "w": (5, 3, 3, 2), "y": (3, 5, 4, 5), "c": (3, 18, 20), "b": (5,), "a": (3,)}
WINDOW: dict[str, Any] = {"stride": (2, 1), "padding": ((1, 1), (0, 0))}
NUMBERS = ([2, 1], [1, 0], [1, 0], [1, 1])


def operands(names: str, groups: int) -> list[Tensor]:
    """x input, w weight, y output, b and a bias of output and of input, c columns; with `groups` times the channels."""
    result = []
    for name in names:
        shape = list(SHAPES[name])
        if name != "w" and len(shape) > 1:
            shape[1] *= groups
        else:
            shape[0] *= groups
        result.append(torch.randn(shape, dtype=torch.float64))
    return result


# names of the operands, and what is computed from them
OPS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "conv": ("xw", lambda x, w, groups: uc.conv2d(x, w, **WINDOW, groups=groups)),
    "conv + bias": ("xwb", lambda x, w, b, groups: uc.conv2d(x, w, b, **WINDOW, groups=groups)),
    "conv_input_grad": ("yw", lambda y, w, groups: uc.conv_transpose2d(y, w, **WINDOW, groups=groups)),
    "conv_input_grad + bias": ("ywa", lambda y, w, a, groups: uc.conv_transpose2d(y, w, a, **WINDOW, groups=groups)),
    "conv_weight_grad": (
        "yx",
        lambda y, x, groups: torch.ops.unfoldconv.conv_weight_grad(y, x, [3, 2], *NUMBERS, groups),
    ),
    "im2col": ("x", lambda x, groups: uc.unfold(x, (3, 2), **WINDOW)),
    "col2im": ("c", lambda c, groups: uc.fold(c, (7, 6), (3, 2), **WINDOW)),
}


def check_every_placement(name: str, groups: int) -> None:
    names, op = OPS[name]
    whole = [tensor.requires_grad_() for tensor in operands(names, groups)]
    expected = op(*whole, groups)
    cotangent = torch.randn_like(expected)
    grads = torch.autograd.grad(expected, whole, cotangent)
    for placements in itertools.product(PLACEMENTS, repeat=len(whole)):
        if any(placement == SECOND and tensor.dim() == 1 for placement, tensor in zip(placements, whole, strict=True)):
            continue
        for grad_placement in PLACEMENTS if len(whole) < 3 else (FULL,):
            parts = [placed(tensor, placement) for tensor, placement in zip(whole, placements, strict=True)]
            result = op(*parts, groups)
            got = torch.autograd.grad(result, parts, placed(cotangent, grad_placement).detach())
            for part, value in zip((result, *got), (expected, *grads), strict=True):
                error = (part.full_tensor() - value).abs().max()
                assert error <= 1e-10, f"{placements} {grad_placement} -> {part.placements}: error {error}"


# name: groups, placements of the operands -> of the result, of the incoming gradient -> of the gradients
SHARED = [
    ("conv", 1, (FIRST, FULL), FIRST, FIRST, (FIRST, SUM)),
    ("conv", 1, (FULL, FIRST), SECOND, SECOND, (SUM, FIRST)),
    ("conv", 1, (SECOND, SECOND), SUM, FULL, (SECOND, SECOND)),
    ("conv", 1, (SUM, FULL), SUM, FULL, (FULL, SUM)),
    ("conv", 2, (FIRST, FULL), FIRST, FIRST, (FIRST, SUM)),
    ("conv + bias", 1, (FIRST, FULL, FULL), FIRST, FIRST, (FIRST, SUM, SUM)),
    ("conv + bias", 1, (FULL, FIRST, FIRST), SECOND, SECOND, (SUM, FIRST, FIRST)),
    ("conv + bias", 1, (FULL, FIRST, FULL), SECOND, SECOND, (SUM, FIRST, FIRST)),
    ("conv + bias", 1, (SECOND, SECOND, FULL), SUM, FULL, (SECOND, SECOND, FULL)),
    ("conv_input_grad", 1, (FIRST, FULL), FIRST, FIRST, (FIRST, SUM)),
    ("conv_input_grad", 1, (FULL, SECOND), SECOND, SECOND, (SUM, SECOND)),
    ("conv_input_grad", 1, (SECOND, FIRST), SUM, FULL, (SECOND, FIRST)),
    ("conv_input_grad + bias", 1, (FULL, SECOND, FIRST), SECOND, SECOND, (SUM, SECOND, FIRST)),
    ("conv_input_grad + bias", 1, (SECOND, FIRST, FULL), SUM, FULL, (SECOND, FIRST, FULL)),
    ("conv_weight_grad", 1, (FIRST, FIRST), SUM, FULL, (FIRST, FIRST)),
    ("conv_weight_grad", 1, (SECOND, FULL), FIRST, FIRST, (SECOND, SUM)),
    ("conv_weight_grad", 1, (FULL, SECOND), SECOND, SECOND, (SUM, SECOND)),
    ("conv_weight_grad", 2, (FIRST, FIRST), SUM, FULL, (FIRST, FIRST)),
    ("im2col", 1, (FIRST,), FIRST, FIRST, (FIRST,)),
    ("im2col", 1, (SUM,), SUM, FULL, (FULL,)),
    ("im2col", 2, (SECOND,), SECOND, SECOND, (SECOND,)),
    ("col2im", 1, (FIRST,), FIRST, FIRST, (FIRST,)),
    ("col2im", 2, (SECOND,), SECOND, SECOND, (SECOND,)),
]


def check_shared() -> None:
    """In one function, because what costs time is the way from one process to another."""
    for name, groups, placements, result_placement, cotangent_placement, grad_placements in SHARED:
        names, op = OPS[name]
        parts = [placed(*pair) for pair in zip(operands(names, groups), placements, strict=True)]
        with CommDebugMode() as communication:
            result = op(*parts, groups)
            cotangent = placed(torch.ones(result.shape, dtype=result.dtype), cotangent_placement).detach()
            grads = torch.autograd.grad(result, parts, cotangent)
        assert communication.get_total_counts() == 0, f"{name} {placements}: {communication.get_comm_counts()}"
        assert result.placements == (result_placement,), f"{name} {placements}: {result.placements}"
        got = tuple(grad.placements[0] for grad in grads)
        assert got == grad_placements, f"{name} {placements}: gradients {got}"


def test_work_is_shared_without_communication(ranks: Ranks) -> None:
    ranks.run(check_shared)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", OPS)
def test_results_and_gradients_for_every_placement(ranks: Ranks, name: str, groups: int) -> None:
    ranks.run(check_every_placement, name, groups)


def second_derivatives(operands: list[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    grads = torch.autograd.grad(uc.conv2d(*operands, **WINDOW), operands, cotangent, create_graph=True)
    return torch.autograd.grad(sum(grad.pow(3).sum() for grad in grads), [*operands, cotangent])


def check_second_derivatives() -> None:
    whole = [tensor.requires_grad_() for tensor in operands("xwy", 1)]
    whole[2] = torch.randn_like(uc.conv2d(*whole[:2], **WINDOW)).requires_grad_()
    expected = second_derivatives(whole[:2], whole[2])
    for placements in itertools.product((FULL, FIRST, SECOND), repeat=3):
        parts = [placed(tensor, placement) for tensor, placement in zip(whole, placements, strict=True)]
        for value, wanted in zip(second_derivatives(parts[:2], parts[2]), expected, strict=True):
            torch.testing.assert_close(value.full_tensor(), wanted, rtol=1e-10, atol=1e-10)


def test_second_derivatives(ranks: Ranks) -> None:
    ranks.run(check_second_derivatives)


def check_windows() -> None:
    """One after the other: torch remembers the answers that it got."""
    x = placed(torch.randn(2, 4, 6, 6), FIRST).detach()
    w = placed(torch.randn(4, 4, 3, 3), FULL).detach()
    for stride, padding, dilation in itertools.product((1, 2), ((0, 0), (1, 2)), (1, 2)):
        window = {"stride": stride, "padding": [padding] * 2, "dilation": dilation}
        for op in (uc.conv2d, uc.conv_transpose2d):
            result = op(x, w, **window)
            expected = op(x.full_tensor(), w.full_tensor(), **window)
            assert result.shape == expected.shape, f"{op.__name__} {window}"
            torch.testing.assert_close(result.full_tensor(), expected)
        columns = uc.unfold(x, 3, **window)
        assert columns.shape == uc.unfold(x.full_tensor(), 3, **window).shape, window
        assert uc.fold(columns, 6, 3, **window).shape == x.shape


def test_one_window_is_not_taken_for_another(ranks: Ranks) -> None:
    ranks.run(check_windows)


def check_two_axes() -> None:
    """The batch along one axis of the mesh, channels along the other."""
    mesh = init_device_mesh("cpu", (2, 2))
    whole = [tensor.requires_grad_() for tensor in operands("xwb", 1)]
    expected = uc.conv2d(*whole, **WINDOW)
    placements = ([FIRST, FULL], [FULL, FIRST], [FULL, FIRST])
    parts = [
        distribute_tensor(tensor.detach(), mesh, pair, src_data_rank=None).requires_grad_()
        for tensor, pair in zip(whole, placements, strict=True)
    ]
    result = uc.conv2d(*parts, **WINDOW)
    assert result.placements == (FIRST, SECOND)
    grads = torch.autograd.grad(result.square().sum(), parts)
    assert [grad.placements for grad in grads] == [(FIRST, SUM), (SUM, FIRST), (SUM, FIRST)]
    for grad, value in zip(grads, torch.autograd.grad(expected.square().sum(), whole), strict=True):
        torch.testing.assert_close(grad.full_tensor(), value, rtol=0, atol=1e-10)


def test_two_axes_of_a_mesh() -> None:
    four = Ranks(4)
    four.run(check_two_axes)
    four.stop()


ALONE = """
import sys
import torch
import unfoldconv as uc
assert "torch.distributed.tensor" not in sys.modules, "importing it takes a second"

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
x, w = torch.randn(4, 3, 8, 8), torch.randn(6, 3, 3, 3)
image = distribute_tensor(x, mesh, [Shard(0)])
weight = distribute_tensor(w, mesh, [Replicate()]).requires_grad_()
output = torch.compile(uc.conv2d, fullgraph=True, backend="aot_eager")(image, weight, stride=2)
torch.testing.assert_close(output.full_tensor(), uc.conv2d(x, w, stride=2))
output.sum().backward()
print(output.placements, weight.grad.placements)
dist.destroy_process_group()
"""


def test_rules_are_known_to_a_process_that_compiles_first() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(Shard(dim=0),) (Partial(sum),)"
