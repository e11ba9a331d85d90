"""``python -m benchmarks engines``: every engine that can compute a case beside the one that unfoldconv picks.

A pick that another engine beats by much is a fault of the choice (correlate_engines.cpp and its neighbours in csrc).
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console

from .cases import Case, make_operands, precision
from .hardware import busy_warning, device_name
from .peers import OURS, Thunk
from .report import SHORT_FORMAT, print_line, run_facts, write_results
from .timing import Clock, Quartiles, Run, make_clock, take_turns

AUTOMATIC = "automatic"
SLOW = 1.3
"""Times the best engine's time, from which a pick counts as wrong."""
HEAD = (
    f"{'layer':<20} {'dtype':<5} {'format':<6} {'pass':<11} {'pick':<21} {'best':<21} {'pick ms':>9} {'best ms':>9} "
    f"{'pick/best [quartiles]':>23}"
)


@dataclass(frozen=True)
class Comparison:
    """The engines of one case.

    Attributes:
        case: The case.
        pick: The engines that are used when none is forced, joined by `+`.
        seconds: Of the automatic pick and of each engine that can do the case.
        best: The engine of least median time.
        ratio: The automatic pick's time / the best one's, round by round.
    """

    case: Case
    pick: str
    seconds: dict[str, Quartiles]
    best: str
    ratio: Quartiles


def measure_engines(
    cases: Sequence[Case],
    left_out: Sequence[str],
    arguments: argparse.Namespace,
    argv: Sequence[str],
    console: Console,
) -> int:
    """Times the engines of every case in turn and prints a line for each, at the end those with a slow pick.

    Args:
        cases: All on one device.
        left_out: Sentences on what is not measured.
        arguments: What `options.add_options` parsed.
        argv: The command line after ``python -m benchmarks``.
        console: Where to print.

    Returns:
        The exit status: 0; a slow pick is said, but is no failure.
    """
    device = cases[0].device
    settings = {"seconds": arguments.seconds, "rounds": arguments.rounds, "left_out": list(left_out)}
    data = run_facts("engines", argv, settings, device)
    data["cases"] = []
    for line in (device_name(data["hardware"]), busy_warning(), *left_out, HEAD):
        if line:
            print_line(console, line)
    clock = make_clock(device)
    deadline = clock.now() + arguments.seconds
    comparisons = []
    for index, case in enumerate(cases):
        share = max(0.0, deadline - clock.now()) / (len(cases) - index)
        with torch.no_grad(), precision(case):
            comparison = compare_engines(case, clock, arguments.rounds, share)
        comparisons.append(comparison)
        data["cases"].append(_json(comparison))
        print_line(console, _line(comparison), "red" if comparison.ratio.median > SLOW else None)
    for line in _conclusion(comparisons):
        print_line(console, line)
    if arguments.json is not None:
        write_results(arguments.json, data)
    return 0


def compare_engines(case: Case, clock: Clock, max_rounds: int, seconds: float) -> Comparison:
    """Times the automatic pick and every engine that can do a case, in turn."""
    call = OURS.prepare(case, make_operands(case))
    pick = "+".join(_engines_of(call, AUTOMATIC))
    rows = torch.ops.unfoldconv.engines(case.device.type == "cuda").split()
    able = [engine for engine in rows if _engines_of(call, engine) == (engine,)]
    names = (AUTOMATIC, *able)
    runs = [_forced_run(call, name) for name in names]
    try:
        times = dict(zip(names, take_turns(runs, clock, max_rounds, seconds), strict=True))
    finally:
        torch.ops.unfoldconv.force_engine(AUTOMATIC)
    measured = {name: Quartiles.of(values) for name, values in times.items()}
    best = min(able, key=lambda name: measured[name].median)
    ratios = [picked / least for picked, least in zip(times[AUTOMATIC], times[best], strict=True)]
    return Comparison(case, pick, measured, best, Quartiles.of(ratios))


def _forced_run(call: Thunk, engine: str) -> Run:
    force = torch.ops.unfoldconv.force_engine.default

    def run() -> None:
        force(engine)
        call()

    return run


@contextmanager
def _forced(engine: str) -> Iterator[None]:
    torch.ops.unfoldconv.force_engine(engine)
    try:
        yield
    finally:
        torch.ops.unfoldconv.force_engine(AUTOMATIC)


def _engines_of(call: Thunk, engine: str) -> tuple[str, ...]:
    """Which engines compute a call while one is forced: that one only, if it can do all of it."""
    import unfoldconv as uc

    with _forced(engine):
        steps = [step for op in uc.explain(call).ops for step in op.steps]
    return tuple(dict.fromkeys(step.engine for step in steps))


def _json(comparison: Comparison) -> dict[str, Any]:
    case = comparison.case
    return {
        "name": case.problem.name,
        "family": case.problem.family,
        "dtype": case.dtype.name,
        "format": case.memory_format,
        "pass": case.pass_,
        "pick": comparison.pick,
        "best": comparison.best,
        "ratio": asdict(comparison.ratio),
        "ms": {
            name: {key: value * 1e3 for key, value in asdict(seconds).items()}
            for name, seconds in comparison.seconds.items()
        },
    }


def _line(comparison: Comparison) -> str:
    case, ratio = comparison.case, comparison.ratio
    picked, best = (comparison.seconds[name].median * 1e3 for name in (AUTOMATIC, comparison.best))
    return (
        f"{case.problem.name:<20} {case.dtype.name:<5} {SHORT_FORMAT[case.memory_format]:<6} {case.pass_:<11} "
        f"{comparison.pick:<21} {comparison.best:<21} {picked:9.3f} {best:9.3f} "
        f"{ratio.median:8.2f} [{ratio.q1:5.2f}, {ratio.q3:5.2f}]"
    )


def _conclusion(comparisons: Sequence[Comparison]) -> Iterator[str]:
    ranked = sorted(comparisons, key=lambda comparison: comparison.ratio.median, reverse=True)
    slow = [comparison for comparison in ranked if comparison.ratio.median > SLOW]
    yield f"{len(slow)} of {len(ranked)} cases with a pick slower than {SLOW} times the best engine"
    for comparison in slow:
        yield f"  {comparison.ratio.median:.2f} {comparison.case.label}: {comparison.pick}, best {comparison.best}"
    yield f"largest pick/best: {ranked[0].ratio.median:.2f}, {ranked[0].case.label}"
