"""Data-parallel training over two ranks, by DDP and by FSDP2, is training on the whole batch in one process."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import unfoldconv as uc
from ranks import Ranks

STEPS = 4
BATCH = 6


class Net(nn.Module):
    """Every kind of layer; some shard unevenly over two ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            uc.Conv2d(3, 8, 3, stride=2, padding="same"),
            nn.SiLU(),
            uc.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.utils.parametrizations.weight_norm(uc.Conv2d(8, 5, 1)),
            nn.SiLU(),
            uc.ConvTranspose2d(5, 4, 3, stride=2, padding=1, output_padding=1, padding_mode="circular"),
            uc.Unfold(2, stride=2),
            uc.Fold((8, 8), 2, stride=2),
        )
        self.signal = uc.Conv1d(4, 3, 5, dilation=2, padding="same")
        self.volume = uc.Conv3d(3, 2, (3, 2, 2))

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images)  # (N, 4, 8, 8)
        signal = self.signal(features.flatten(2))  # (N, 3, 64)
        return self.volume(signal.unflatten(2, (4, 4, 4))).flatten(1).tanh()  # FSDP warns of a view


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images, targets = (torch.randn(shape, generator=generator) for shape in ((BATCH, 3, 8, 8), (BATCH, 36)))
    return images.double(), targets.double()


def train(model: nn.Module, part: Callable[[Tensor], Tensor]) -> list[float]:
    """Some steps on a part of the batch; the losses. Every rank has as many images, so means of means are right."""
    images, targets = map(part, batch())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        loss = nn.functional.mse_loss(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def own(tensor: Tensor) -> Tensor:
    return tensor.chunk(dist.get_world_size())[dist.get_rank()]


def net() -> nn.Module:
    torch.manual_seed(2)
    return Net().double()


def assert_trained_alike(model: nn.Module, losses: list[float]) -> None:
    """The weights of `model` and the mean of all ranks' losses are those of one process with the whole batch."""
    alone = net()
    expected = torch.tensor(train(alone, lambda tensor: tensor), dtype=torch.float64)
    assert expected[0] - expected[-1] > 1e-3, "training has changed nothing"
    mean = torch.tensor(losses, dtype=torch.float64)
    dist.all_reduce(mean)
    torch.testing.assert_close(mean / dist.get_world_size(), expected, rtol=0, atol=1e-10)
    for (name, parameter), reference in zip(model.named_parameters(), alone.parameters(), strict=True):
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        torch.testing.assert_close(whole, reference, rtol=0, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def check_ddp(options: dict[str, bool]) -> None:
    model = DistributedDataParallel(net(), **options)
    assert_trained_alike(model, train(model, own))


@pytest.mark.parametrize("options", [{}, {"static_graph": True, "gradient_as_bucket_view": True}], ids=["", "static"])
def test_ddp(ranks: Ranks, options: dict[str, bool]) -> None:
    ranks.run(check_ddp, options)


def check_fsdp() -> None:
    model = net()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (*model.body, model.signal):
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    weight = model.body[0].weight
    assert isinstance(weight, DTensor)
    assert weight.to_local().shape == (4, 3, 3, 3), "each rank holds half of it"
    assert_trained_alike(model, train(model, own))


def test_fsdp(ranks: Ranks) -> None:
    ranks.run(check_fsdp)


class Channels(nn.Module):
    """Two layers whose weights are shared by channels: the first by those it makes, the second by those it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = uc.Conv2d(3, 8, 3, padding=1)
        self.contract = uc.Conv2d(8, 4, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.contract(nn.functional.silu(self.expand(images)))


def check_tensor_parallel(compiled: bool) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(2)
    alone = Channels().double()
    model = copy.deepcopy(alone)
    for layer, dim in ((model.expand, 0), (model.contract, 1)):
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(dim)]))
        bias = [Shard(0)] if dim == 0 else [Replicate()]
        layer.bias = nn.Parameter(distribute_tensor(layer.bias.detach(), mesh, bias))
    images = torch.randn(BATCH, 3, 6, 6, dtype=torch.float64)
    forward = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    for network, run, batch in ((alone, alone, images), (model, forward, distribute_tensor(images, mesh))):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(2):
            output = run(batch)
            optimizer.zero_grad()
            output.square().mean().backward()
            optimizer.step()
    assert output.placements == (Partial(),), "no rank has had to wait for channels of another"
    for parameter, reference in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(parameter.full_tensor(), reference, rtol=0, atol=1e-10)


@pytest.mark.parametrize("compiled", [False, True])
def test_tensor_parallel(ranks: Ranks, compiled: bool) -> None:
    ranks.run(check_tensor_parallel, compiled)
