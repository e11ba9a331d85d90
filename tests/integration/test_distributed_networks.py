"""Converted networks trained by two ranks, with DDP and with FSDP2, are what one process makes of the whole batch."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import unfoldconv as uc
from networks import NETWORKS, Network, output_of
from ranks import Ranks

STEPS = 4

# Dense convolutions, depthwise ones, transposed ones in 2-D, and in 1-D with weight_norm.
TRAINED = ("resnet", "convnext", "dpt", "oobleck_vae")
each_network = pytest.mark.parametrize("name", TRAINED)


def network_of(name: str) -> Network:
    return next(network for network in NETWORKS if network.name == name)


def made(name: str) -> nn.Module:
    """The network of torch.nn. Its batch norm uses the averages that it has: those of a part are not of the whole."""
    return network_of(name).build()[0].eval()


def batch(name: str) -> tuple[Tensor, ...]:
    """The inputs of two seeds, so that each rank has as many."""
    inputs = [network_of(name).build(seed=seed)[1] for seed in (0, 1)]
    return tuple(torch.cat(several) for several in zip(*inputs, strict=True))


def train(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[float]:
    """Some steps; the losses, which are means over the batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        output = output_of(model, inputs)
        loss = (output - 0.5).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def own(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.chunk(dist.get_world_size())[dist.get_rank()] for tensor in inputs)


def assert_trains_as_one_process(name: str, model: nn.Module, parameters: Callable[[], list[Tensor]]) -> None:
    """`model` is trained by all ranks, torch's network by each alone with the whole batch."""
    inputs = batch(name)
    alone = made(name)
    before = [parameter.detach().clone() for parameter in alone.parameters()]
    expected = torch.tensor(train(alone, inputs), dtype=torch.float64)
    mean = torch.tensor(train(model, own(inputs)), dtype=torch.float64)
    dist.all_reduce(mean)
    torch.testing.assert_close(mean / dist.get_world_size(), expected, rtol=1e-10, atol=1e-10)
    largest = 0.0
    for ours, theirs, was in zip(parameters(), alone.parameters(), before, strict=True):
        whole = ours.full_tensor() if isinstance(ours, DTensor) else ours
        torch.testing.assert_close(whole, theirs, rtol=1e-10, atol=1e-10)
        largest = max(largest, (theirs - was).abs().max().item())
    assert largest > 1e-3, "training has changed nothing"


def converts(model: nn.Module, name: str) -> None:
    """That convert has swapped all that there is."""
    report = uc.conversion_report(model)
    assert len(report.swapped) == sum(network_of(name).swapped.values())
    assert not report.left


def check_ddp(name: str) -> None:
    model = uc.convert(made(name), inplace=True)
    converts(model, name)
    # DPT has layers that it never calls.
    ddp = DistributedDataParallel(model, find_unused_parameters=name == "dpt")
    assert_trains_as_one_process(name, ddp, lambda: list(ddp.parameters()))


@each_network
def test_ddp(ranks: Ranks, name: str) -> None:
    ranks.run(check_ddp, name)


def check_convert_after_ddp(way: str) -> None:
    """convert finds the modules within the wrapper, and the wrapper goes on reducing the gradients of all of them."""
    name = "convnext"
    ddp = DistributedDataParallel(made(name))
    if way == "module":
        uc.convert(ddp.module, inplace=True)
        converts(ddp.module, name)
        trained = ddp
    else:
        trained = uc.convert(ddp, inplace=way == "inplace")
        assert (trained is ddp) == (way == "inplace")
        converts(trained, name)
    assert_trains_as_one_process(name, trained, lambda: list(ddp.parameters()))


@pytest.mark.parametrize("way", ["module", "inplace", "copy"])
def test_convert_after_ddp(ranks: Ranks, way: str) -> None:
    ranks.run(check_convert_after_ddp, way)


def sharded(model: nn.Module) -> nn.Module:
    """Each convolution by itself, and the rest."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in list(model.modules()):
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def check_fsdp(name: str) -> None:
    model = uc.convert(made(name), inplace=True)
    converts(model, name)
    model = sharded(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert_trains_as_one_process(name, model, lambda: list(model.parameters()))


@each_network
def test_fsdp(ranks: Ranks, name: str) -> None:
    ranks.run(check_fsdp, name)


def check_convert_after_fsdp() -> None:
    model = uc.convert(sharded(made("convnext")), inplace=True)
    report = uc.conversion_report(model)
    assert not report.swapped
    assert {entry.reason for entry in report.left} == {"its weight is a DTensor"}
    assert_trains_as_one_process("convnext", model, lambda: list(model.parameters()))


def test_convert_after_fsdp_says_why_not(ranks: Ranks) -> None:
    """The model stays as it was, and trains as it did."""
    ranks.run(check_convert_after_fsdp)
