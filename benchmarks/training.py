"""``python -m benchmarks training``: a training step of a converted network beside the original, and converting one."""

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from .accuracy import ERROR_FACTOR
from .cases import FORMATS
from .hardware import busy_warning, device_name
from .networks import resnet18, resnet50
from .options import positive
from .report import print_line, run_facts, write_results
from .timing import CpuClock, Quartiles, Run, no_garbage_collection, race

CPU = torch.device("cpu")
HEAD = f"{'ResNet-18, float32':<20} {'ours ms':>8} {'torch ms':>9} {'torch/ours [quartiles]':>26} {'goal':>6}"
STEP_GOAL = 1.0
"""Least torch's time / ours of a training step."""

CONVERSION_GOAL_MS = 1000.0
"""Most milliseconds for a ResNet-50."""

CONVERSIONS = 5
MAX_ROUNDS = 1000


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the subcommand."""
    parser.add_argument("--batch", type=positive(int), default=8, help="images in a step (default: %(default)s)")
    parser.add_argument("--size", type=positive(int), default=112, help="their height and width (default: %(default)s)")
    parser.add_argument("--width", type=positive(int), default=64, help="channels of stage 1 (default: %(default)s)")
    parser.add_argument("--seconds", type=positive(float), default=60.0, help="time to aim at (default: %(default)s)")
    parser.add_argument("--threads", type=positive(int), help="CPU threads (default: torch's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")


def measure_training(arguments: argparse.Namespace, argv: Sequence[str], console: Console) -> int:
    """Times a step of both networks in turn, in each memory format, and the conversion of a ResNet-50.

    Args:
        arguments: What `add_training_options` parsed.
        argv: The command line after ``python -m benchmarks``.
        console: Where to print.

    Returns:
        The exit status: 1 if the gradients of the two differ, else 0; a goal that is missed is said, but is no failure.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = {name: getattr(arguments, name) for name in ("batch", "size", "width", "seconds")}
    data = run_facts("training", argv, settings, CPU)
    for line in (device_name(data["hardware"]), busy_warning(), HEAD):
        if line:
            print_line(console, line)
    data["steps"] = []
    for memory_format in FORMATS:
        entry = _step(arguments, memory_format)
        data["steps"].append(entry)
        print_line(console, _step_line(entry))
    data["conversion"] = _conversion(arguments.width)
    print_line(console, _conversion_line(data["conversion"]))
    if arguments.json is not None:
        write_results(arguments.json, data)
    return int(any(map(_is_wrong, data["steps"])))


def _step(arguments: argparse.Namespace, memory_format: str) -> dict[str, Any]:
    import unfoldconv as uc

    layout: Any = {"memory_format": getattr(torch, f"{memory_format}_format", None) or getattr(torch, memory_format)}
    torch.manual_seed(0)
    theirs = resnet18(arguments.width).to(**layout)
    ours = uc.convert(copy.deepcopy(theirs), inplace=True)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size).to(**layout)
    labels = torch.randint(0, 1000, (arguments.batch,))
    exact = copy.deepcopy(theirs).double()
    _run(exact, images.double(), labels)()
    runs = [_run(model, images, labels) for model in (ours, theirs)]
    for run in runs:
        run()
    expected = _gradient(exact)
    errors = [float((_gradient(model) - expected).norm() / expected.norm()) for model in (ours, theirs)]
    times = race(*runs, CpuClock(), MAX_ROUNDS, arguments.seconds / len(FORMATS))
    return {
        "format": memory_format,
        "rounds": len(times.ours),
        "ours_ms": _milliseconds(times.ours),
        "torch_ms": _milliseconds(times.theirs),
        "ratio": asdict(times.ratio),
        "goal": STEP_GOAL,
        "gradient_error": errors[0],
        "torch_gradient_error": errors[1],
    }


def _gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().double() for p in model.parameters()])  # type: ignore[union-attr]


def _is_wrong(entry: dict[str, Any]) -> bool:
    """Whether our gradients are farther from those in float64 than torch's, by more than the factor of a single op."""
    # A sign that rounding turns before a ReLU changes them by thousandths of their norm, in torch as in ours.
    return bool(entry["gradient_error"] > ERROR_FACTOR * entry["torch_gradient_error"])


def _run(model: nn.Module, images: Tensor, labels: Tensor) -> Run:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def _conversion(width: int) -> dict[str, Any]:
    """Milliseconds of `convert`, as a copy and in place, and the modules that it swaps."""
    import unfoldconv as uc

    model = resnet50(width)
    times: dict[bool, list[float]] = {False: [], True: []}
    with no_garbage_collection():
        for _ in range(CONVERSIONS):
            for inplace, measured in times.items():
                start = time.perf_counter()
                converted = uc.convert(model, inplace=inplace)
                measured.append(time.perf_counter() - start)
                swapped = len(uc.conversion_report(converted).swapped)
            uc.revert(model)
    return {
        "modules": swapped,
        "copy_ms": _milliseconds(times[False]),
        "inplace_ms": _milliseconds(times[True]),
        "goal_ms": CONVERSION_GOAL_MS,
    }


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    return asdict(Quartiles.of([second * 1e3 for second in seconds]))


def _step_line(entry: dict[str, Any]) -> str:
    ratio = entry["ratio"]
    verdict = "" if ratio["median"] >= entry["goal"] else "  MISSED"
    if _is_wrong(entry):
        errors = f"{entry['gradient_error']:.2g}, torch's by {entry['torch_gradient_error']:.2g}"
        verdict = f"  WRONG: gradients are off by {errors}"
    return (
        f"step, {entry['format']:<14} {entry['ours_ms']['median']:8.1f} {entry['torch_ms']['median']:9.1f} "
        f"{ratio['median']:10.2f} [{ratio['q1']:5.2f}, {ratio['q3']:5.2f}] {entry['goal']:6.2f}{verdict}"
    )


def _conversion_line(entry: dict[str, Any]) -> str:
    copied, inplace = entry["copy_ms"]["median"], entry["inplace_ms"]["median"]
    verdict = "" if max(copied, inplace) <= entry["goal_ms"] else "  MISSED"
    return (
        f"convert(ResNet-50): {copied:.1f} ms for a copy, {inplace:.1f} ms in place, {entry['modules']} modules, "
        f"goal {entry['goal_ms']:.0f} ms{verdict}"
    )
