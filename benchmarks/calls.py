"""``python -m benchmarks calls``: what a call costs beside its arithmetic, for there is next to none to do.

One output of a 3x3 kernel takes a few nanoseconds; the rest of a call is Python, the dispatcher, autograd and memory.
Functions are called, and modules, as a model has them after it was converted.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from .hardware import busy_warning, device_name
from .options import positive
from .report import print_line, run_facts, write_results
from .timing import CpuClock, Quartiles, Race, Run, race

CPU = torch.device("cpu")
HEAD = f"{'call':<25} {'ours us':>8} {'torch us':>9} {'ours - torch [quartiles]':>26} {'goal':>6}"


@dataclass(frozen=True)
class Call:
    """One kind of call of a convolution of a 1x1x3x3 image with a 1x1x3x3 weight.

    Attributes:
        name: What the report calls it.
        module: Whether a module is called, with its weight, instead of the function.
        grad: Whether image and weight require gradients.
        backward: Whether their gradients are computed as well.
        goal: By how many microseconds ours may take longer than torch's.
    """

    name: str
    module: bool
    grad: bool
    backward: bool
    goal: float


CALLS = tuple(
    Call(f"module {name}" if module else name, module, grad, backward, goal)
    for module in (False, True)
    for name, grad, backward, goal in (
        ("no_grad", False, False, 5.0),
        ("forward", True, False, 10.0),
        ("forward + backward", True, True, 10.0),
    )
)


def add_call_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the subcommand."""
    parser.add_argument("--seconds", type=positive(float), default=10.0, help="time to aim at (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")


def measure_calls(arguments: argparse.Namespace, argv: Sequence[str], console: Console) -> int:
    """Times every kind of call, ours and torch's in turn, on one thread, and prints a line for each.

    Args:
        arguments: What `add_call_options` parsed.
        argv: The command line after ``python -m benchmarks``.
        console: Where to print.

    Returns:
        The exit status: 0; a goal that is missed is said, but is no failure.
    """
    import unfoldconv as uc

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        data = run_facts("calls", argv, {"seconds": arguments.seconds}, CPU)
        data["calls"] = []
        for line in (device_name(data["hardware"]), busy_warning(), HEAD):
            if line:
                print_line(console, line)
        for call in CALLS:
            ours = _run(uc.conv2d, uc.Conv2d, call)
            theirs = _run(F.conv2d, nn.Conv2d, call)
            times = race(ours, theirs, CpuClock(), 10000, arguments.seconds / len(CALLS))
            entry = _entry(call, times)
            data["calls"].append(entry)
            print_line(console, _line(entry))
    finally:
        torch.set_num_threads(threads)
    if arguments.json is not None:
        write_results(arguments.json, data)
    return 0


def _run(function: Callable[..., Tensor], module: type[nn.Conv2d], call: Call) -> Run:
    image = torch.ones(1, 1, 3, 3, requires_grad=call.grad)
    layer = module(1, 1, 3, bias=False).requires_grad_(call.grad)
    weight = layer.weight
    convolve: Callable[..., Tensor] = layer if call.module else function
    arguments = (image,) if call.module else (image, weight)
    grad_output = torch.ones(1, 1, 1, 1)

    def forward() -> None:
        convolve(*arguments)

    def without_grad() -> None:
        with torch.no_grad():
            convolve(*arguments)

    def with_backward() -> None:
        torch.autograd.grad(convolve(*arguments), (image, weight), grad_output)

    return with_backward if call.backward else forward if call.grad else without_grad


def _entry(call: Call, times: Race) -> dict[str, Any]:
    """Microseconds of a call and of the difference, round by round."""

    def quartiles(seconds: list[float]) -> dict[str, float]:
        return asdict(Quartiles.of([second * 1e6 for second in seconds]))

    difference = [ours - theirs for ours, theirs in zip(times.ours, times.theirs, strict=True)]
    return {
        "name": call.name,
        "rounds": len(times.ours),
        "ours_us": quartiles(times.ours),
        "torch_us": quartiles(times.theirs),
        "difference_us": quartiles(difference),
        "goal_us": call.goal,
    }


def _line(entry: dict[str, Any]) -> str:
    difference = entry["difference_us"]
    reached = "" if difference["median"] <= entry["goal_us"] else "  MISSED"
    return (
        f"{entry['name']:<25} {entry['ours_us']['median']:8.2f} {entry['torch_us']['median']:9.2f} "
        f"{difference['median']:10.2f} [{difference['q1']:5.2f}, {difference['q3']:5.2f}] "
        f"{entry['goal_us']:6.1f}{reached}"
    )
