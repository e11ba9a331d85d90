"""One case from operands to result, and a whole run of cases. The same for every device and subcommand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import accuracy
from .accuracy import Reference
from .cases import Case, make_operands, precision
from .ceilings import Ceilings, measure_bandwidth, measure_flop_rate
from .memory import peak_extra_bytes
from .peers import TORCH, Peer, Thunk
from .results import CaseResult, Side
from .timing import Clock, Quartiles, make_clock, race


@dataclass(frozen=True)
class Limits:
    """How long a run, or a case, may take.

    Attributes:
        max_rounds: Rounds per comparison at most.
        seconds: Wall-clock time to aim at; every comparison has `timing.MIN_ROUNDS` all the same.
    """

    max_rounds: int
    seconds: float


class Observer:
    """Told what a run is doing; a report overrides what it shows."""

    def ceilings(self, dtype: str, ceilings: Ceilings) -> None:
        """The ceilings of a dtype were measured."""

    def begin(self, case: Case) -> None:
        """A case begins."""


def run_cases(
    cases: Sequence[Case], compared: Sequence[Peer], limits: Limits, observer: Observer
) -> Iterator[CaseResult]:
    """Measures cases one after another.

    Args:
        cases: All on one device.
        compared: The peers beside torch's own op, which is always there.
        limits: Rounds and time.
        observer: Told of each step.

    Yields:
        A result per case, as soon as it is done.
    """
    clock = make_clock(cases[0].device)
    deadline = clock.now() + limits.seconds
    bandwidth = measure_bandwidth(cases[0].device, clock)
    ceilings: dict[str, Ceilings] = {}
    for index, case in enumerate(cases):
        observer.begin(case)
        with torch.no_grad(), precision(case):
            if case.dtype.name not in ceilings:
                ceilings[case.dtype.name] = Ceilings(bandwidth, measure_flop_rate(case, clock))
                observer.ceilings(case.dtype.name, ceilings[case.dtype.name])
            share = max(0.0, deadline - clock.now()) / (len(cases) - index)
            result = run_case(case, compared, Limits(limits.max_rounds, share), clock, ceilings[case.dtype.name])
        yield result


def run_case(case: Case, compared: Sequence[Peer], limits: Limits, clock: Clock, ceilings: Ceilings) -> CaseResult:
    """Checks, then times, one case.

    Args:
        case: The case; `cases.precision` is already in force.
        compared: The peers beside torch's own op.
        limits: Rounds and time of this case.
        clock: The device's clock.
        ceilings: The device's ceilings in the case's dtype.

    Returns:
        The result; an exception of any implementation is part of it.
    """
    deadline = clock.now() + limits.seconds
    result = CaseResult(case, ceilings.floor_seconds(case))
    result.theirs = [Side(peer, peer.refusal(case)) for peer in (TORCH, *compared)]
    try:
        our_call, their_calls = _check(result)
    except _NotTimedError as reason:
        result.status, result.message = reason.status, str(reason)
        return result
    result.ours.extra_bytes = peak_extra_bytes(our_call, case.device)
    for index, (side, call) in enumerate(their_calls):
        side.extra_bytes = peak_extra_bytes(call, case.device)
        share = max(0.0, deadline - clock.now()) / (len(their_calls) - index)
        times = race(our_call, call, clock, limits.max_rounds, share)
        side.seconds, side.ratio, side.rounds = Quartiles.of(times.theirs), times.ratio, len(times.theirs)
        if side.peer is TORCH:
            result.ours.seconds, result.ours.rounds = Quartiles.of(times.ours), len(times.ours)
    return result


class _NotTimedError(Exception):
    """Ends a case before it is timed, with the status that it gets."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


def _check(result: CaseResult) -> tuple[Thunk, list[tuple[Side, Thunk]]]:
    """Runs every side once and notes its error.

    Returns:
        Our call; and the sides that can be timed with their calls, torch first.

    Raises:
        _NotTimedError: Ours is wrong or raises, or torch's own op cannot do the case.
    """
    case, ours, (torch_side, *others) = result.case, result.ours, result.theirs
    if torch_side.refusal is not None:
        raise _NotTimedError("skipped", torch_side.refusal)
    operands = make_operands(case)
    try:
        reference = Reference(case, operands)
    except (RuntimeError, ValueError) as error:
        raise _NotTimedError("skipped", f"torch in {case.dtype.accurate}: {_first_line(error)}") from None

    def attempt(side: Side) -> tuple[Thunk, Tensor] | None:
        try:
            call = side.peer.prepare(case, operands)
            returned = call()
            side.error = reference.error(returned)
        except (RuntimeError, ValueError) as error:
            side.refusal = _first_line(error)
            return None
        return call, returned

    if (torch_run := attempt(torch_side)) is None or torch_side.error is None:
        raise _NotTimedError("skipped", f"torch: {torch_side.refusal}")
    if (our_run := attempt(ours)) is None or ours.error is None:
        raise _NotTimedError("failed", str(ours.refusal))
    result.bound = reference.bound(torch_side.error)
    if not ours.error.within(result.bound):
        raise _NotTimedError("wrong", f"error must be at most {result.bound}, but got {ours.error}")
    # Twice the bound: both have an error, and the largest of all elements exceeds the largest of a sample.
    distance, distance_bound = accuracy.error(our_run[1], torch_run[1]), result.bound.times(2)
    if not distance.within(distance_bound):
        raise _NotTimedError("wrong", f"distance from torch must be at most {distance_bound}, but got {distance}")

    runs = [(side, attempt(side)) for side in others if side.refusal is None]
    return our_run[0], [(torch_side, torch_run[0]), *((side, run[0]) for side, run in runs if run is not None)]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
