"""Trains the network of train_digits.py in several processes, each on its part of every batch.

    torchrun --nproc-per-node 2 examples/train_distributed.py [--strategy ddp|fsdp] [--epochs 10] [--timeout 60]

The processes talk by gloo, on CPU. With DDP each has all weights, with FSDP2 (``fully_shard``) its part of them. The
program exits with status 1 unless

* in float64, the losses of the first epoch and the weights after it are those of one process that trains alone, to
  ``FLOAT64_TOLERANCE``;
* in float32, the network classifies more than 97 % of the held-out digits correctly.

If a process dies, the others end with the error of torch.distributed, at the latest after ``--timeout`` seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from rich.console import Console
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from train_digits import (
    ACCURACY_FLOOR,
    FLOAT64_TOLERANCE,
    Digits,
    Run,
    accuracy,
    epoch_batches,
    initial_weights,
    largest_difference,
    load_data,
    one_cycle,
    report,
    start_run,
    train_step,
)

import unfoldconv as uc


def sharded(network: nn.Sequential) -> nn.Module:
    """FSDP2: the weights of a layer come together only while it is used."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in network:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(network, mesh=mesh)


STRATEGIES: dict[str, Callable[[nn.Sequential], nn.Module]] = {"ddp": DistributedDataParallel, "fsdp": sharded}


def train(run: Run, data: Digits, epochs: int, seed: int, rank: int, processes: int, console: Console) -> None:
    """Every step on part `rank` of a batch that is divided among the processes; one process takes whole batches.

    Both strategies take the mean of the processes' gradients, so each divides by its share of the batch's size. The
    recorded losses are those of whole batches.
    """
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        start = time.perf_counter()
        batches = epoch_batches(data, generator)
        for step, (images, labels) in enumerate(batches, epoch * len(batches)):
            own_images, own_labels = (tensor.tensor_split(processes)[rank] for tensor in (images, labels))
            rate = one_cycle(step, epochs * len(batches))
            train_step(run, own_images, own_labels, rate, len(labels) / processes)
        run.epoch_seconds.append(time.perf_counter() - start)
        if processes > 1:
            losses = torch.tensor(run.losses[-len(batches) :], dtype=torch.float64)
            dist.all_reduce(losses)
            run.losses[-len(batches) :] = (losses / processes).tolist()
        console.print(f"{run.name}: epoch {epoch + 1}  loss {run.losses[-1]:.4f}", highlight=False)


def largest_weight_difference(first: nn.Module, second: nn.Module) -> float:
    """Over all parameters of two models, sharded or not."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    whole = ([weight.full_tensor() if isinstance(weight, DTensor) else weight for weight in pair] for pair in pairs)
    return max((a - b).abs().max().item() for a, b in whole)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--strategy", choices=STRATEGIES, default="ddp", help="default: ddp")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the 1347 training images (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the batches (default: 0)")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait for another process (default: 60)")
    parser.add_argument("--no-check", action="store_true", help="exit with status 0 whatever the figures are")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Trains, prints and checks; returns the exit status."""
    options = parse_arguments(arguments)
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)  # the images are so small that threads would spend their time waiting for each other
    dist.init_process_group("gloo", timeout=timedelta(seconds=options.timeout))
    rank, processes = dist.get_rank(), dist.get_world_size()
    console = Console(quiet=rank > 0)
    data = load_data(options.seed)
    weights = initial_weights()
    wrap = STRATEGIES[options.strategy]

    alone = start_run("alone, float64", uc, weights, torch.float64)
    train(alone, data, 1, options.seed, 0, 1, console)
    together = start_run(f"{options.strategy}, float64", uc, weights, torch.float64, wrap)
    train(together, data, 1, options.seed, rank, processes, console)
    loss_gap = largest_difference(alone, together)
    weight_gap = largest_weight_difference(alone.model, together.model)
    checks = [
        (f"float64 losses, 1 epoch: max difference {loss_gap:.1e}, bound {FLOAT64_TOLERANCE:.0e}",
         loss_gap <= FLOAT64_TOLERANCE),
        (f"float64 weights after it: max difference {weight_gap:.1e}, bound {FLOAT64_TOLERANCE:.0e}",
         weight_gap <= FLOAT64_TOLERANCE),
    ]  # fmt: skip
    report(checks, console)

    run = start_run(options.strategy, uc, weights, torch.float32, wrap)
    train(run, data, options.epochs, options.seed, rank, processes, console)
    correct = accuracy(run.model, data)
    console.print(f"{processes} processes, {statistics.median(run.epoch_seconds):.3f} seconds per epoch")
    checks.append((f"test accuracy {correct:.2%}, must exceed {ACCURACY_FLOOR:.0%}", correct > ACCURACY_FLOOR))
    report(checks[2:], console)
    dist.destroy_process_group()
    return 0 if options.no_check or all(holds for _, holds in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
