"""One case from operands to result, and a whole run of cases. The same for every device and subcommand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import accuracy
from .cases import Case, Operands, make_operands, precision
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
        expected = accuracy.reference(case, operands)
    except (RuntimeError, ValueError) as error:
        raise _NotTimedError("skipped", f"torch in float64: {_first_line(error)}") from None

    torch_call = _try(torch_side, case, operands, expected)
    if torch_call is None or torch_side.error is None:
        raise _NotTimedError("skipped", f"torch: {torch_side.refusal}")
    result.bound = accuracy.bound(case, torch_side.error, expected)

    our_call = _try(ours, case, operands, expected)
    if our_call is None or ours.error is None:
        raise _NotTimedError("failed", str(ours.refusal))
    if not ours.error.within(result.bound):
        raise _NotTimedError("wrong", f"error must be at most {result.bound}, but got {ours.error}")

    calls = [(side, _try(side, case, operands, expected)) for side in others if side.refusal is None]
    return our_call, [(torch_side, torch_call), *((side, call) for side, call in calls if call is not None)]


def _try(side: Side, case: Case, operands: Operands, expected: Tensor) -> Thunk | None:
    """Prepares a side, runs it once and notes its error; or notes why it cannot run."""
    try:
        call = side.peer.prepare(case, operands)
        side.error = accuracy.error(call(), expected)
    except (RuntimeError, ValueError) as error:
        side.refusal = _first_line(error)
        return None
    return call


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
